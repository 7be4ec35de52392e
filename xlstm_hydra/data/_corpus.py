"""Corpora: token sequences split into examples of fixed length.

An example is a dict of arrays of shape `[context_length]`: `inputs` and `targets` (the inputs shifted by one token),
int32; `document_borders`, bool, True for the first input of a document and of the example; and `loss_mask`, bool, False
for targets that are padding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from xlstm_hydra.configs import DataConfig, SyntheticDataConfig
from xlstm_hydra.configs.data import ByteDataConfig
from xlstm_hydra.problems import ConfigError, Problem

from ._files import find_documents, show_path

Example = dict[str, np.ndarray]

SEPARATOR = 0
"""Token inserted before each document."""

ENTROPY_SAMPLE = 1 << 24
"""Maximum number of bytes used to estimate the unigram entropy."""


class Source(Protocol):
    """A collection of examples with random access by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class ByteCorpus:
    """Files concatenated to one stream of bytes, whose range [start, stop) is split into examples. A file is read only
    when an example needs it.

    The inputs of example i are the bytes [start + i * length, start + (i + 1) * length) of the stream, so each byte in
    the range except the first is a target exactly once. If the last example is incomplete, it is padded if `pad` is
    True, and dropped otherwise.
    """

    def __init__(
        self, root: Path, files: Sequence[Path], sizes: Sequence[int], length: int, start: int, stop: int, pad: bool
    ) -> None:
        self._names = [file.relative_to(root).as_posix() for file in files]
        self._files, self._length, self._start, self._stop = list(files), length, start, stop
        self._offsets = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64) + 1)])
        targets = max(stop - start - 1, 0)
        self._count = math.ceil(targets / length) if pad else targets // length

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        begin = self._start + index * self._length
        tokens, documents = self.read(begin, min(begin + self._length + 1, self._stop))
        missing = self._length + 1 - len(tokens)
        tokens, documents = np.pad(tokens, (0, missing)), np.pad(documents, (0, missing))
        return _example(tokens, documents)

    def read(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens [begin, end) of the stream, and the document number of each token. The first document in
        this range has number 1."""
        first = int(np.searchsorted(self._offsets, begin, side="right")) - 1
        tokens = np.full(end - begin, SEPARATOR, np.int32)
        documents = np.zeros(end - begin, np.int32)
        document = first
        while document < len(self._files) and self._offsets[document] < end:
            low, high = max(begin, self._offsets[document]), min(end, self._offsets[document + 1])
            documents[low - begin : high - begin] = document - first + 1
            text_low = max(low, self._offsets[document] + 1)
            if high > text_low:
                offset = int(text_low - self._offsets[document] - 1)
                content = _read_bytes(self._files[document], offset, int(high - text_low))
                tokens[text_low - begin : high - begin] = content
            document += 1
        return tokens, documents

    unit = "byte"
    """Name of a token in messages."""

    def fingerprint(self) -> str:
        """Return a hash that changes if a file is added, removed, renamed or resized, or if the stream is split into
        other examples. It does not depend on the contents of the files."""
        record = [self._length, self._start, self._stop, self._names, self._offsets.tolist()]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def unigram_entropy(self) -> float:
        """Return the entropy of the byte frequencies in bits per byte, estimated from the first `ENTROPY_SAMPLE` bytes.
        A unigram model cannot have a lower loss."""
        tokens, _ = self.read(self._start, min(self._stop, self._start + ENTROPY_SAMPLE))
        counts = np.bincount(tokens, minlength=256)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log2(shares)).sum())


def _example(tokens: np.ndarray, documents: np.ndarray) -> Example:
    """Build an example from `context_length + 1` tokens and the document number of each token (0: padding)."""
    borders = np.diff(documents[:-1], prepend=-1) != 0
    return {"inputs": tokens[:-1], "targets": tokens[1:], "document_borders": borders, "loss_mask": documents[1:] > 0}


def _read_bytes(file: Path, offset: int, count: int) -> np.ndarray:
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(count)
    if len(content) < count:
        raise OSError(f"{show_path(file)} was truncated while the run was reading it")
    return np.frombuffer(content, np.uint8)


class SyntheticCorpus:
    """Token sequences generated on demand. Each sequence repeats its own random motif."""

    def __init__(self, config: SyntheticDataConfig, length: int, vocab_size: int, start: int, stop: int) -> None:
        self._config, self._length, self._vocab_size = config, length, vocab_size
        self._start, self._stop = start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([self._config.seed, self._start + index])
        motif = rng.integers(0, self._vocab_size, self._config.motif_length, dtype=np.int32)
        tokens = np.resize(motif, self._length + 1)
        return _example(tokens, np.ones_like(tokens))

    unit = "token"
    """Name of a token in messages."""

    def fingerprint(self) -> str:
        """Return a hash of everything that the examples depend on."""
        record = [self._config.to_dict(), self._length, self._vocab_size, self._start, self._stop]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def unigram_entropy(self) -> float:
        """Return the entropy of the token frequencies in bits per token. All tokens are equally likely."""
        return math.log2(self._vocab_size)


Corpus = ByteCorpus | SyntheticCorpus


def open_corpus(config: DataConfig, context_length: int, vocab_size: int) -> tuple[Corpus, Corpus]:
    """Return the training examples and the validation examples of a corpus.

    Raises:
        ConfigError: no files were found, a file cannot be read, or the files have too few bytes.
    """
    if isinstance(config, SyntheticDataConfig):
        count = config.num_examples
        held_out = min(max(1, round(count * config.validation_fraction)), count - 1)
        parts = ((0, count - held_out), (count - held_out, count))
        train, validation = (SyntheticCorpus(config, context_length, vocab_size, *part) for part in parts)
        return train, validation
    assert isinstance(config, ByteDataConfig)
    root, files, sizes = find_documents(config)
    total = sum(sizes) + len(sizes)
    held_out = max(round(total * config.validation_fraction), context_length + 1)
    if total - held_out <= context_length:
        given = {"model.context_length": context_length, "data.validation_fraction": config.validation_fraction}
        rule = f"the corpus has {total} bytes, too few for an example in both the training and the validation split"
        raise ConfigError([Problem(given, rule, "Add text, or lower model.context_length.")])
    cut = total - held_out
    train, validation = (
        ByteCorpus(root, files, sizes, context_length, *part, pad=config.pad_last) for part in ((0, cut), (cut, total))
    )
    return train, validation


def open_whole_corpus(config: DataConfig, context_length: int, vocab_size: int) -> Corpus:
    """Return all examples of a corpus, without a validation split.

    Raises:
        ConfigError: no files were found, a file cannot be read, or the files have too few bytes.
    """
    if isinstance(config, SyntheticDataConfig):
        return SyntheticCorpus(config, context_length, vocab_size, 0, config.num_examples)
    assert isinstance(config, ByteDataConfig)
    root, files, sizes = find_documents(config)
    total = sum(sizes) + len(sizes)
    corpus = ByteCorpus(root, files, sizes, context_length, 0, total, pad=config.pad_last)
    if len(corpus) == 0:
        given = {"data.pad_last": config.pad_last, "model.context_length": context_length}
        raise ConfigError([Problem(given, f"the corpus has {total} bytes, too few for an example", "Add text.")])
    return corpus
