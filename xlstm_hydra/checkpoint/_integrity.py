"""Checkpoint integrity: write the manifest (file digests) after a save, and verify it when the checkpoint is read."""

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
"""Timeout in seconds for the other processes, which may still be verifying other files on a slow disk."""


class Sealing:
    """Thread that waits for the end of a save and then writes the manifest of the step.

    If the process is killed between the two, the checkpoint is complete and still marked as waiting for its manifest.
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
            if self._checkpoint.is_dir() and is_finished(
                self._checkpoint
            ):  # False if the save failed or the checkpoint was already deleted
                write_manifest(self._checkpoint)
        except Exception as error:
            self._error = error

    def raise_failed(self) -> None:
        """Raise the error that prevented writing the manifest, if there is one."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until the manifest is written. Raise the error that prevented writing it, if there is one."""
        self._thread.join()
        self.raise_failed()


@contextmanager
def verified(checkpoint: Path, key: str, *items: str) -> Iterator[None]:
    """Verify the given items of a checkpoint (all by default) while the block reads them; see `runs.verified_files`. A
    Hugging Face folder has no manifest and is not verified.

    Raises:
        DamageFound: a file differs from the manifest. This error takes precedence over errors raised in the block.
    """
    if is_hugging_face(checkpoint):
        yield
        return
    texts = partial(gather_texts, "xlstm_hydra/verified", seconds=_PATIENCE_SECONDS)
    with verified_files(checkpoint, key, items, (runtime.process_id(), runtime.num_processes()), texts):
        yield
