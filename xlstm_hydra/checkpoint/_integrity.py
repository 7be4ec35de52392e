"""Integrity of a checkpoint: its manifest, written once it is saved, and its verification while it is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from xlstm_hydra.devices import gather_texts, runtime
from xlstm_hydra.runs import is_finished, verified_files, write_manifest

from ._hugging_face import is_hugging_face

_POLL_SECONDS = 0.02

_PATIENCE_SECONDS = 3600.0
"""Time that a process waits for the others, which verify other files of a slow disk."""


class Sealing:
    """A thread that waits for the end of a save and then lists the files of the step in its manifest.

    A process that is killed in between leaves a checkpoint that is finished, and marked as one that gets a manifest.
    """

    def __init__(self, checkpoint: Path, is_saving: Callable[[], bool]) -> None:
        self._checkpoint, self._is_saving = checkpoint, is_saving
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="manifest", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._is_saving():
                time.sleep(_POLL_SECONDS)
            if self._checkpoint.is_dir() and is_finished(self._checkpoint):  # neither failed nor deleted as a bad one
                write_manifest(self._checkpoint)
        except Exception as error:
            self._error = error

    def raise_failed(self) -> None:
        """Raise what has kept the manifest from being written, if anything has."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until the manifest is written, and raise what has kept it from being written."""
        self._thread.join()
        self.raise_failed()


@contextmanager
def verified(checkpoint: Path, key: str, *items: str) -> Iterator[None]:
    """Verify some items (all, if none is given) of a checkpoint that are read inside: see `runs.verified_files`. A
    folder of Hugging Face has no manifest.

    Raises:
        DamageFound: a file differs from the manifest, whatever else was raised inside.
    """
    if is_hugging_face(checkpoint):
        yield
        return
    texts = partial(gather_texts, "xlstm_hydra/verified", seconds=_PATIENCE_SECONDS)
    with verified_files(checkpoint, key, items, (runtime.process_id(), runtime.num_processes()), texts):
        yield
