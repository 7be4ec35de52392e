"""Batches of examples: shuffled, split over processes, and resumable. Examples are loaded with Grain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from xlstm_hydra.configs import DataConfig

from ._corpus import Example, Source


class _Rows:
    """The examples that one process loads: the given rows of every global batch, starting with batch `first_batch`."""

    def __init__(self, examples: Any, batch_size: int, rows: Sequence[int], first_batch: int) -> None:
        self._examples, self._batch, self._rows, self._first = examples, batch_size, rows, first_batch

    def __len__(self) -> int:
        return (len(self._examples) // self._batch - self._first) * len(self._rows)

    def __getitem__(self, index: int) -> Example:
        batch, row = divmod(index, len(self._rows))
        return self._examples[(self._first + batch) * self._batch + self._rows[row]]


class Batches:
    """Infinite iterator over the batches of one process. The position of the iterator is the number of batches already
    returned, which is the same in all processes."""

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
        """Number of batches returned since the beginning of the data."""
        return self._position

    def seek(self, position: int) -> None:
        """Set the position: the next batch is the one after the first `position` batches of the data."""
        rows = grain.MapDataset.source(_Rows(self._examples, self._batch, self._rows, position))
        threads, buffered = (1, self._prefetch * len(self._rows)) if self._prefetch else (0, 0)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered)
        self._iterator = iter(rows.to_iter_dataset(options).batch(len(self._rows)))
        self._position = position


def train_batches(corpus: Source, config: DataConfig, batch_size: int, rows: Sequence[int] | None = None) -> Batches:
    """Return an infinite iterator over training batches. The examples are reshuffled in every epoch.

    The examples of a global batch do not depend on the number of processes or on the rows that each process loads.

    Args:
        corpus: the examples.
        config: `seed` determines the order of the examples, and `prefetch` the number of batches to load ahead.
        batch_size: examples per global batch, which is split over all processes.
        rows: rows of each global batch that this process loads. None: all rows.

    Returns:
        Iterator over dicts with the arrays of an `Example`, each of shape `[len(rows), context_length]`.
    """
    examples = grain.MapDataset.source(corpus).seed(config.seed).shuffle().repeat()
    return Batches(examples, batch_size, range(batch_size) if rows is None else rows, config.prefetch)


def spread_batches(corpus: Source, batch_size: int, count: int, rows: Sequence[int] | None = None) -> Iterator[Example]:
    """Yield batches of evenly spaced examples of the corpus, the same in every call. If the last batch is incomplete,
    it is padded with examples that the loss ignores.

    Args:
        corpus: the examples.
        batch_size: examples per global batch, which is split over all processes.
        count: maximum number of batches.
        rows: rows of each global batch that this process loads. None: all rows.

    Yields:
        Dicts with the arrays of an `Example`, each of shape `[len(rows), context_length]`.
    """
    wanted = min(count * batch_size, len(corpus))
    chosen = np.linspace(0, len(corpus) - 1, wanted).round().astype(int)
    padding = {key: np.zeros_like(value) for key, value in corpus[0].items()}
    for begin in range(0, wanted, batch_size):
        places = (begin + row for row in (range(batch_size) if rows is None else rows))
        examples = [corpus[int(chosen[place])] if place < wanted else padding for place in places]
        yield {key: np.stack([example[key] for example in examples]) for key in padding}
