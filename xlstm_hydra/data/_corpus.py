"""Tokens in fixed-length examples.

An example is a dict of arrays of `context_length`: `inputs` and `targets` (the inputs one token later), int32;
`document_borders`, true where an input begins a document or the example; and `loss_mask`, false where a target is
padding.
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
"""Byte that every document begins with."""

ENTROPY_SAMPLE = 1 << 24
"""Bytes that the unigram entropy is measured on at most."""


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class ByteCorpus:
    """Documents as one long stream of bytes, cut into examples. Files are read where an example needs them.

    Example i holds the stream's bytes [start + i * length, start + (i + 1) * length] as inputs, so that each byte of
    the range but the first is a target once.
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
        """Tokens [begin, end) of the stream, and for each the number of its document, from 1 within the range."""
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
    """What a token is."""

    def fingerprint(self) -> str:
        """Changes whenever a token may be elsewhere: when a file is added, removed, renamed or of another size."""
        record = [self._length, self._start, self._stop, self._names, self._offsets.tolist()]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def unigram_entropy(self) -> float:
        """Bits per byte of a model that knows the frequency of each byte and nothing else."""
        tokens, _ = self.read(self._start, min(self._stop, self._start + ENTROPY_SAMPLE))
        counts = np.bincount(tokens, minlength=256)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log2(shares)).sum())


def _example(tokens: np.ndarray, documents: np.ndarray) -> Example:
    """An example from length + 1 tokens and the number of each one's document, 0 for padding."""
    borders = np.diff(documents[:-1], prepend=-1) != 0
    return {"inputs": tokens[:-1], "targets": tokens[1:], "document_borders": borders, "loss_mask": documents[1:] > 0}


def _read_bytes(file: Path, offset: int, count: int) -> np.ndarray:
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(count)
    if len(content) < count:
        raise OSError(f"{show_path(file)} has become shorter while the run was reading it")
    return np.frombuffer(content, np.uint8)


class SyntheticCorpus:
    """Sequences that repeat a random motif of their own, made when they are asked for."""

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
    """What a token is."""

    def fingerprint(self) -> str:
        """Changes whenever another example may be made."""
        record = [self._config.to_dict(), self._length, self._vocab_size, self._start, self._stop]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def unigram_entropy(self) -> float:
        """Bits per token of a model that knows the frequency of each token and nothing else."""
        return math.log2(self._vocab_size)


Corpus = ByteCorpus | SyntheticCorpus


def open_corpus(config: DataConfig, context_length: int, vocab_size: int) -> tuple[Corpus, Corpus]:
    """Training and validation examples of a source.

    Raises:
        ConfigError: there are no files at `data.path`, or too little in them.
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
        rule = f"the corpus has {total} bytes, too few for an example of each of training and validation"
        raise ConfigError([Problem(given, rule, "Add text, or set model.context_length lower.")])
    cut = total - held_out
    train, validation = (
        ByteCorpus(root, files, sizes, context_length, *part, pad=config.pad_last) for part in ((0, cut), (cut, total))
    )
    return train, validation


def open_whole_corpus(config: DataConfig, context_length: int, vocab_size: int) -> Corpus:
    """All examples of a source, with nothing kept out of them.

    Raises:
        ConfigError: there are no files at `data.path`, or too little in them.
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
