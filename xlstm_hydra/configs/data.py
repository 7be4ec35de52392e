"""Where tokens come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import LAYOUT, NUMERICS, affects
from ._rules import at_least, below, own_name


@config_dataclass
class DataConfig(ConfigDict):
    """What every source of tokens has. The examples are `model.context_length` long, `trainer.batch_size` at a time."""

    name: str = field(metadata=affects(NUMERICS, compiled=False))
    """Which source this is."""

    seed: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Seed of the order of the examples, and of what a synthetic source makes up."""

    validation_fraction: float = field(default=0.02, metadata=affects(NUMERICS, compiled=False))
    """Share of the tokens kept out of training for the validation loss, cut from the end of the corpus."""

    prefetch: int = field(default=4, metadata=affects(LAYOUT, compiled=False))
    """Batches that are prepared ahead of the training loop. 0: none."""

    def rules(self) -> Iterator[Problem]:
        """Ranges."""
        yield from own_name(self)
        yield from at_least(self, 0, "seed", "prefetch")
        yield from below(self, 2**32, "seed")
        yield from at_least(self, 0, "validation_fraction", above=True)
        yield from below(self, 1, "validation_fraction")


@config_dataclass
class ByteDataConfig(DataConfig):
    """Text as bytes: token ids 0 to 255, where a document begins with a 0. The order of the documents is shuffled once,
    by their names, before the corpus is cut."""

    pad_last: bool = field(default=True, metadata=affects(NUMERICS, compiled=False))
    """Fill the last, shorter example with padding, which the loss leaves out; otherwise drop it."""


@config_dataclass
class StdlibDataConfig(ByteDataConfig):
    """The source code of the Python standard library on this machine: real text with no download."""

    name: str = "stdlib"
    """Which source this is."""


@config_dataclass
class TextDataConfig(ByteDataConfig):
    """Text files. Each file is a document."""

    name: str = "text"
    """Which source this is."""

    path: str = field(metadata=affects(NUMERICS, compiled=False))
    """A file, a folder (all files in it, with its sub-folders) or a glob such as `books/**/*.txt`."""

    def rules(self) -> Iterator[Problem]:
        """There must be a path."""
        yield from super().rules()
        if not self.path.strip():
            yield Problem({"path": self.path}, "must name a file, a folder or a glob")
        if any("\ud800" <= letter <= "\udfff" for letter in self.path):  # bytes that are not text, as Python has them
            fix = "Give a glob that matches it, or a link to it with another name."
            yield Problem({"path": self.path}, "must be valid UTF-8, since the config of a run is saved as text", fix)


@config_dataclass
class SyntheticDataConfig(DataConfig):
    """Sequences that a model can learn to predict: each repeats a random motif of its own. No files are read."""

    name: str = "synthetic"
    """Which source this is."""

    num_examples: int = field(default=4096, metadata=affects(NUMERICS, compiled=False))
    """Different examples in the corpus."""

    motif_length: int = field(default=16, metadata=affects(NUMERICS, compiled=False))
    """Tokens after which a sequence repeats itself. Less than `model.context_length`, or nothing could be learned."""

    def rules(self) -> Iterator[Problem]:
        """Ranges."""
        yield from super().rules()
        yield from at_least(self, 2, "num_examples")
        yield from at_least(self, 1, "motif_length")
