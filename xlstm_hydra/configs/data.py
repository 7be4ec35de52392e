"""Config group `data`: the sources of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import LAYOUT, NUMERICS, affects
from ._rules import at_least, below, own_name


@config_dataclass
class DataConfig(ConfigDict):
    """Fields of every data source. Examples have `model.context_length` tokens; a batch has `trainer.batch_size`
    examples."""

    name: str = field(metadata=affects(NUMERICS, compiled=False))
    """Name of the data source, set by the option."""

    seed: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Random seed for the order of the examples, and for the examples of a synthetic source."""

    validation_fraction: float = field(default=0.02, metadata=affects(NUMERICS, compiled=False))
    """Fraction of the tokens held out for the validation loss, taken from the end of the corpus."""

    prefetch: int = field(default=4, metadata=affects(LAYOUT, compiled=False))
    """Batches prepared ahead of the training loop. 0: no prefetching."""

    def rules(self) -> Iterator[Problem]:
        """Check ranges."""
        yield from own_name(self)
        yield from at_least(self, 0, "seed", "prefetch")
        yield from below(self, 2**32, "seed")
        yield from at_least(self, 0, "validation_fraction", above=True)
        yield from below(self, 1, "validation_fraction")


@config_dataclass
class ByteDataConfig(DataConfig):
    """Text as bytes, with token ids 0 to 255. Every document begins with the token 0. The documents are shuffled once,
    by their names, before the validation part is split off."""

    pad_last: bool = field(default=True, metadata=affects(NUMERICS, compiled=False))
    """Pad the last, shorter example; the loss ignores the padding. false: drop this example."""


@config_dataclass
class StdlibDataConfig(ByteDataConfig):
    """The source code of the installed Python standard library: real text without a download."""

    name: str = "stdlib"
    """Name of the data source, set by the option."""


@config_dataclass
class TextDataConfig(ByteDataConfig):
    """Text files. Each file is a document."""

    name: str = "text"
    """Name of the data source, set by the option."""

    path: str = field(metadata=affects(NUMERICS, compiled=False))
    """A file, a folder (all files in it and its subfolders) or a glob such as `books/**/*.txt`."""

    def rules(self) -> Iterator[Problem]:
        """Check that the path is given and can be saved as text."""
        yield from super().rules()
        if not self.path.strip():
            yield Problem({"path": self.path}, "must name a file, a folder or a glob")
        if any("\ud800" <= letter <= "\udfff" for letter in self.path):  # undecodable bytes, as Python represents them
            fix = "Use a glob that matches it, or a link to it with another name."
            yield Problem({"path": self.path}, "must be valid UTF-8, because the config of a run is saved as text", fix)


@config_dataclass
class SyntheticDataConfig(DataConfig):
    """Synthetic sequences that a model can learn to predict: each repeats its own random motif. No files are read."""

    name: str = "synthetic"
    """Name of the data source, set by the option."""

    num_examples: int = field(default=4096, metadata=affects(NUMERICS, compiled=False))
    """Number of different examples in the corpus."""

    motif_length: int = field(default=16, metadata=affects(NUMERICS, compiled=False))
    """Length of the repeated motif in tokens. Must be less than `model.context_length`, otherwise nothing repeats."""

    def rules(self) -> Iterator[Problem]:
        """Check ranges."""
        yield from super().rules()
        yield from at_least(self, 2, "num_examples")
        yield from at_least(self, 1, "motif_length")
