"""Batches of examples: shuffled, cut over processes, and resumable. The loading is grain's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from xlstm_hydra.configs import DataConfig

from ._corpus import Example, Source


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
