"""Tokens in fixed-length examples, shuffled, cut over processes, and resumable. The loading is grain's.

An example is a dict of arrays of `context_length`: `inputs` and `targets` (the inputs one token later), int32;
`document_borders`, true where an input begins a document or the example; and `loss_mask`, false where a target is
padding.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import math
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np

from xlstm_hydra.configs import ConfigError, DataConfig, Problem, StdlibDataConfig, SyntheticDataConfig, TextDataConfig
from xlstm_hydra.configs.data import ByteDataConfig

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
        raise OSError(f"{file} has become shorter while the run was reading it")
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
    root, files, sizes = _documents(config)
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
    root, files, sizes = _documents(config)
    total = sum(sizes) + len(sizes)
    corpus = ByteCorpus(root, files, sizes, context_length, 0, total, pad=config.pad_last)
    if len(corpus) == 0:
        given = {"data.pad_last": config.pad_last, "model.context_length": context_length}
        raise ConfigError([Problem(given, f"the corpus has {total} bytes, too few for an example", "Add text.")])
    return corpus


def _documents(config: ByteDataConfig) -> tuple[Path, list[Path], list[int]]:
    """The folder of the names, the files and their sizes, in an order that depends on their names only."""
    if isinstance(config, TextDataConfig):
        root, files = _text_files(config.path)
    else:
        assert isinstance(config, StdlibDataConfig)
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
        files = [file for file in root.rglob("*.py") if not skip & set(file.relative_to(root).parts)]
    files.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    return root, files, [file.stat().st_size for file in files]


def _text_files(path: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files at a path."""
    expanded = Path(path).expanduser()
    if expanded.is_file():
        return expanded.parent, [expanded]
    if expanded.is_dir():
        root, files = expanded, _walk(expanded)
    else:
        plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), expanded.parts))
        root = Path(*plain)
        files = [Path(name) for name in glob.glob(str(expanded), recursive=True) if Path(name).is_file()]
    if not files:
        fix = "Give a file, a folder with files in it, or a glob such as 'books/**/*.txt' (in quotes)."
        raise ConfigError([Problem({"data.path": path}, f"there are no files there (seen from {Path.cwd()})", fix)])
    if unreadable := [file for file in files if not os.access(file, os.R_OK)]:
        raise ConfigError(
            [Problem({"data.path": path}, f"{len(unreadable)} files cannot be read, such as {unreadable[0]}")]
        )
    return root, files


def _walk(root: Path) -> list[Path]:
    """All files below a folder, linked folders too, without what is hidden."""
    files, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            files += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return [file for file in files if file.is_file()]


class _Rows:
    """The examples of one process: of every global batch from `first_batch` on, the same rows, in the same order."""

    def __init__(self, examples: Any, batch_size: int, rows: Sequence[int], first_batch: int) -> None:
        self._examples, self._batch, self._rows, self._first = examples, batch_size, rows, first_batch

    def __len__(self) -> int:
        return (len(self._examples) // self._batch - self._first) * len(self._rows)

    def __getitem__(self, index: int) -> Example:
        batch, row = divmod(index, len(self._rows))
        return self._examples[(self._first + batch) * self._batch + self._rows[row]]


class Batches:
    """Endless batches of one process. The position in them is a number of batches, the same in all processes."""

    def __init__(self, examples: Any, batch_size: int, rows: Sequence[int], prefetch: int) -> None:
        self._examples, self._batch, self._rows, self._prefetch = examples, batch_size, rows, prefetch
        self.seek(0)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Example:
        batch = next(self._iterator)
        self._position += 1
        return batch

    @property
    def position(self) -> int:
        """Batches taken since the beginning of the data."""
        return self._position

    def seek(self, position: int) -> None:
        """Go to where `position` batches have been taken."""
        rows = grain.MapDataset.source(_Rows(self._examples, self._batch, self._rows, position))
        threads, buffered = (1, self._prefetch * len(self._rows)) if self._prefetch else (0, 0)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered)
        self._iterator = iter(rows.to_iter_dataset(options).batch(len(self._rows)))
        self._position = position


def train_batches(corpus: Source, config: DataConfig, batch_size: int, rows: Sequence[int] | None = None) -> Batches:
    """Endless batches, shuffled anew in every epoch.

    Which examples form a global batch does not depend on who loads which of its rows.

    Args:
        corpus: the examples.
        config: its `seed` sets the order.
        batch_size: examples per step over all processes.
        rows: those of a global batch that this process loads; all, if None.
    """
    examples = grain.MapDataset.source(corpus).seed(config.seed).shuffle().repeat()
    return Batches(examples, batch_size, range(batch_size) if rows is None else rows, config.prefetch)


def spread_batches(corpus: Source, batch_size: int, count: int, rows: Sequence[int] | None = None) -> Iterator[Example]:
    """These rows (all, if None) of the first `count` batches, evenly spread over the corpus and always the same. A
    batch that the corpus does not fill is filled with padding."""
    wanted = min(count * batch_size, len(corpus))
    chosen = np.linspace(0, len(corpus) - 1, wanted).round().astype(int)
    padding = {key: np.zeros_like(value) for key, value in corpus[0].items()}
    for begin in range(0, wanted, batch_size):
        places = (begin + row for row in (range(batch_size) if rows is None else rows))
        examples = [corpus[int(chosen[place])] if place < wanted else padding for place in places]
        yield {key: np.stack([example[key] for example in examples]) for key in padding}
