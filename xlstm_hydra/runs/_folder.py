"""The run folder: created and locked before the run, and returned to its previous state if the run is rejected."""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from xlstm_hydra.problems import ConfigError, Problem

from ._links import refuse_links_out
from ._locks import LOCK_FILE, hold_folder
from ._paths import FOLDER
from ._starting_point import ASIDE

log = logging.getLogger(__name__)

_LARGE = 2**20
"""Size in bytes above which only the size of a file is remembered for restoring it, not its content."""

OTHER_FOLDER = "Choose another folder with hydra.run.dir=DIR."
"""The fix for a folder that cannot be used."""


class RunFolder:
    """A folder that a run writes to, and the config key that sets the folder."""

    WRITTEN: ClassVar = (
        *(LOCK_FILE, "config.yaml", "metadata.json", "parameters.txt", "plan.json", "plan.txt", "search.json"),
        *("metrics.csv", "evaluation.json", "generated.json", "outcome.json", "error.txt", "xlstm-hydra.log"),
        *(FOLDER, ASIDE, "tensorboard", ".hydra"),
    )
    """Names of all files and folders that runs write into a run folder."""

    def __init__(self, path: Path, given: Mapping[str, Any] | None = None, fix: str = OTHER_FOLDER) -> None:
        """Args:
        path: the folder.
        given: the config key that sets the folder, with its value, for messages.
        fix: the fix for a folder that cannot be used.
        """
        self.path, self._given, self._fix = path, given or {"hydra.run.dir": str(path)}, fix

    @contextmanager
    def held(self, files: Iterable[Path], check: Callable[[], bool]) -> Iterator[bool]:
        """Create the folder and lock it, so that no other run writes to it, and yield the result of `check`.

        If the run is rejected, the folder is restored: created files and folders are removed, and `files` get their
        previous content.

        Args:
            files: files in the folder that are written before it is certain that the run can start.
            check: called once the folder is locked, before anything is written to it.

        Raises:
            ConfigError: the folder cannot be created or written, it contains a link that leads out of the folder,
                another run is writing to it, or `check` raises the error.
        """
        files = list(files)
        # Files are restored before the lock is released, so that no other run can start in between.
        with ExitStack() as made, ExitStack() as lock, ExitStack() as undo:
            with self.writing():
                self.make(self.path, made)
                self.refuse_links_out(files)
                file = self.path / LOCK_FILE
                is_new = not file.exists()
                lock.enter_context(hold_folder(self.path))
                if is_new:
                    undo.callback(file.unlink, missing_ok=True)
            checked = check()
            with self.writing():
                for file in files:
                    self.make(file.parent, undo)
                    self._keep(file, undo)
            try:
                yield checked
            except ConfigError:
                raise
            except BaseException:
                undo.pop_all()
                made.pop_all()
                raise
            undo.pop_all()
            made.pop_all()

    def refuse_links_out(self, files: Iterable[Path] = ()) -> None:
        """Check that a run cannot write or delete files outside the folder through links.

        Args:
            files: files to be written in addition to `WRITTEN`. Files outside the folder were chosen by the user, and
                are not checked.

        Raises:
            ConfigError: the folder contains a link that leads out of the folder.
        """
        own = [self.path / name for name in self.WRITTEN]
        with self.writing():
            refuse_links_out(self.path, [*own, *files], self._given, f"Remove it, or use another folder. {self._fix}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert an error while writing into a `ConfigError` about the folder."""
        try:
            yield
        except OSError as error:
            raise self.unusable(error) from error

    def unusable(self, error: OSError) -> ConfigError:
        """Return an error that names the file that cannot be written, and the reason."""
        name = error.filename
        head = f"{name} " if name and str(name) != str(self.path) else ""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = f"Free some space. {self._fix}" if is_full else self._fix
        return ConfigError([Problem(self._given, f"{head}cannot be written: {error.strerror}", fix)])

    def make(self, folder: Path, undo: ExitStack) -> None:
        """Create a folder and its missing parents. When `undo` is closed, the created folders that are empty are
        removed."""
        if "\0" in str(folder):
            raise OSError(errno.EINVAL, "its name contains a NUL character")
        missing = list(itertools.takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents)))
        above = missing[-1].parent if missing else folder
        if not above.is_dir():
            text = "it is a broken link" if above.is_symlink() else "it is not a folder"
            raise NotADirectoryError(errno.ENOTDIR, text, str(above))
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            undo.callback(_remove_if_empty, path)

    def _keep(self, file: Path, undo: ExitStack) -> None:
        """Check that a file can be written. When `undo` is closed, an existing file gets its previous content, and a
        new file is removed. A large file is a log to which a run only appends, so it is truncated to its previous size.
        A device or a pipe is not checked."""
        if file.exists() and not (file.is_file() or file.is_dir()):
            return
        if not file.exists():
            undo.callback(_restore, file, None)
        elif (size := file.stat().st_size) > _LARGE:
            undo.callback(_restore, file, size)
        else:
            undo.callback(_restore, file, file.read_bytes())
        file.open("ab").close()


def _restore(file: Path, before: bytes | int | None) -> None:
    """Restore a file to its content (bytes) or size (int) before the run. None: the file did not exist; remove it."""
    try:
        if before is None:
            file.unlink(missing_ok=True)
        elif isinstance(before, int):
            os.truncate(file, before)
        elif file.read_bytes() != before:
            file.write_bytes(before)
    except OSError as error:
        log.warning("the run was rejected, but %s cannot be restored: %s", file, error.strerror)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # it is not empty
