"""Config group `data`: the source of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import LAYOUT, NUMERICS, affects
from ._rules import at_least, below, own_name


@config_dataclass
class DataConfig(ConfigDict):
    """Fields common to all data sources. An example is a sequence of `model.context_length` tokens, and a batch has
    `trainer.batch_size` examples."""

    name: str = field(metadata=affects(NUMERICS, compiled=False))
    """Name of the data source, set by the selected option."""

    seed: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Random seed for the order of the training examples and for the content of synthetic examples."""

    validation_fraction: float = field(default=0.02, metadata=affects(NUMERICS, compiled=False))
    """Fraction of the corpus held out for the validation loss, taken from its end; above 0 and below 1."""

    prefetch: int = field(default=4, metadata=affects(LAYOUT, compiled=False))
    """Number of batches loaded ahead of the training loop. 0: no prefetching."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges."""
        yield from own_name(self)
        yield from at_least(self, 0, "seed", "prefetch")
        yield from below(self, 2**32, "seed")
        yield from at_least(self, 0, "validation_fraction", above=True)
        yield from below(self, 1, "validation_fraction")


@config_dataclass
class ByteDataConfig(DataConfig):
    """Text as bytes, with token ids 0 to 255. Every document begins with the token 0. Before the validation part is
    split off, the documents are put in a fixed random order that depends only on their file names."""

    pad_last: bool = field(default=True, metadata=affects(NUMERICS, compiled=False))
    """Pad the last, incomplete example to full length; the loss ignores the padding. false: drop this example."""


@config_dataclass
class StdlibDataConfig(ByteDataConfig):
    """Source code of the installed Python standard library: real text that needs no download."""

    name: str = "stdlib"
    """Name of the data source, set by the selected option."""


@config_dataclass
class TextDataConfig(ByteDataConfig):
    """Text files, one document per file."""

    name: str = "text"
    """Name of the data source, set by the selected option."""

    path: str = field(metadata=affects(NUMERICS, compiled=False))
    """File, folder (all files in it and in its subfolders) or glob pattern such as `books/**/*.txt`."""

    def rules(self) -> Iterator[Problem]:
        """Check that the path is set and is valid UTF-8."""
        yield from super().rules()
        if not self.path.strip():
            yield Problem({"path": self.path}, "must name a file, a folder or a glob")
        if any("\ud800" <= letter <= "\udfff" for letter in self.path):  # undecodable bytes, as Python represents them
            fix = "Use a glob that matches the name, or a link with another name."
            yield Problem({"path": self.path}, "must be valid UTF-8, because the config of a run is saved as text", fix)


@config_dataclass
class SyntheticDataConfig(DataConfig):
    """Synthetic sequences that a model can learn to predict, because every sequence repeats its own random motif. No
    files are read."""

    name: str = "synthetic"
    """Name of the data source, set by the selected option."""

    num_examples: int = field(default=4096, metadata=affects(NUMERICS, compiled=False))
    """Number of different examples in the corpus, including those for validation."""

    motif_length: int = field(default=16, metadata=affects(NUMERICS, compiled=False))
    """Length of the motif in tokens. Must be less than `model.context_length`, otherwise no sequence contains a
    repetition."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges."""
        yield from super().rules()
        yield from at_least(self, 2, "num_examples")
        yield from at_least(self, 1, "motif_length")
