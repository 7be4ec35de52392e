"""The compilation cache: saves compiled programs on disk for later runs, and counts them.

JAX stores each compiled program under a key that covers everything the program depends on. This module sets the cache
directory and the cache options for one run, and restores the previous values afterwards. It also reads and writes the
files itself, because JAX writes files in place and never repairs a file that is truncated because a process was killed.

Cached programs are executed without further checks, so anyone who can write to the cache could run code in this
process. Therefore, a file is loaded only if it belongs to this user or root, and nobody else can write to it. The cache
directory is the user's default directory, or is set on the command line, in the user's config or in the environment. It
does not depend on the run folder, because a run folder may come from someone else.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from xlstm_hydra._jax_internals import is_whole_program, use_cache
from xlstm_hydra._logging import log
from xlstm_hydra.configs import TrainerConfig

_HIT, _SAVED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/compile_time_saved_sec"
_COMPILE = "/jax/core/compile/backend_compile_duration"
"""Names of JAX events. A program loaded from the cache also counts as a compilation."""

_SETTINGS: dict[str, Any] = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # also cache the programs of small jobs
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_persistent_cache_enable_xla_caches": None,  # the key would include their path, which must be writable
}
"""Other JAX options to set, unless they are set in the environment."""

_UNFINISHED, _HOUR = ".new", 3600.0
"""Suffix of files that are being written, and the age in seconds after which such a file counts as abandoned."""

_OWN = Path("xlstm_hydra", "compiled")
"""Default cache directory, relative to the user's cache folder (`~/.cache`)."""

_UNUSED_DAYS = 30.0
"""Days without use after which a program is removed from the default cache directory."""


@dataclass
class CompilationStats:
    """Statistics of the compiled programs of a run."""

    total: int = 0
    """Number of programs."""

    from_cache: int = 0
    """Number of programs loaded from the cache."""

    seconds: float = 0.0
    """Seconds spent on compiling programs and on loading them from the cache."""

    saved: float = 0.0
    """Estimated seconds saved by the cache: original compilation times, rounded by JAX to whole seconds, minus loading
    times."""

    @property
    def compiled(self) -> int:
        """Number of programs that were compiled."""
        return self.total - self.from_cache

    def __str__(self) -> str:
        if not self.total:
            return "nothing, because an earlier job in this process compiled the same programs"
        text = f"{self.compiled} of {self.total} programs, {self.seconds:.1f} s"
        if not self.from_cache:
            return text
        share = f"{100 * self.from_cache / self.total:.0f}%"
        return f"{text}; {self.from_cache} came from the cache ({share}), about {max(self.saved, 0):.0f} s saved"

    def _event(self, event: str, **_: Any) -> None:
        self.from_cache += event == _HIT

    def _duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILE:
            self.total, self.seconds = self.total + 1, self.seconds + duration_secs
        elif event == _SAVED:
            self.saved += duration_secs


@contextmanager
def compilation_cache(config: TrainerConfig) -> Iterator[CompilationStats]:
    """Count the programs compiled in the `with` block, and save them in the cache directory of the config.

    Yields:
        The statistics, which are updated while programs are compiled.
    """
    programs, folder = CompilationStats(), _cache_folder(config)
    wanted: dict[str, Any] = {"jax_compilation_cache_dir": folder}
    wanted |= {name: value for name, value in _SETTINGS.items() if name.upper() not in os.environ}
    before = {name: jax.config.values[name] for name in wanted}
    jax.monitoring.register_event_listener(programs._event)
    jax.monitoring.register_event_duration_secs_listener(programs._duration)
    try:
        _set(wanted, folder)
        yield programs
    finally:
        _set(before, None)
        jax.monitoring.unregister_event_listener(programs._event)
        jax.monitoring.unregister_event_duration_listener(programs._duration)


def _set(settings: dict[str, Any], folder: str | None) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    use_cache(None if folder is None or "://" in folder else _Store(Path(folder)))


def _cache_folder(config: TrainerConfig) -> str | None:
    """Return the cache directory; None if programs are not cached. The URL of an object store is returned unchanged."""
    if config.compilation_cache_dir is None:
        return None
    known = jax.config.values["jax_compilation_cache_dir"]
    if config.compilation_cache_dir == "auto" and known and "://" in known:
        return known
    if config.compilation_cache_dir != "auto":
        folder = Path(config.compilation_cache_dir).expanduser().absolute()
    else:
        folder = Path(known).absolute() if known else compiled_folder()
    if folder is None:
        log.warning("compiled programs are not cached: this user has no home folder")
    elif (owner := _other_writer(_status(folder))) is not None:
        log.warning(
            "the cache directory %s is not used: %s can write programs to it, and this process would run them. Choose "
            "another directory with trainer.compilation_cache_dir, or remove the permission with chmod go-w",
            *(folder, owner),
        )
        return None
    return None if folder is None else str(folder)


def compiled_folder() -> Path | None:
    """Return this user's default cache directory; None for a user without a home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = Path(os.path.expanduser("~"))
    folder = cache if cache.is_absolute() else home / ".cache"
    return folder / _OWN if folder.is_absolute() else None


def _status(folder: Path) -> os.stat_result | None:
    try:
        return folder.stat()
    except OSError:
        return None  # missing or unreadable


def _other_writer(status: os.stat_result | None) -> str | None:
    """Return a description of who can write a file besides this user and root; None if nobody can."""
    if status is None:
        return None
    if status.st_uid not in (os.getuid(), 0):
        return f"its owner (user {status.st_uid})"
    return next((who for who, bit in (("everyone", 0o002), ("its group", 0o020)) if status.st_mode & bit), None)


def _remove_older(file: Path, seconds: float) -> None:
    """Remove a file that has not been used for `seconds`. Errors are ignored: another process may have removed it."""
    with suppress(OSError):
        if time.time() - file.stat().st_mtime > seconds:
            file.unlink()


class _Store:
    """Directory of compiled programs, with the file names that JAX uses.

    Each file is written completely or not at all. A file that another program has left truncated is reported and
    replaced. A file that someone else could have written is not loaded. If files cannot be read or written, one warning
    is logged and the run continues without the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder  # JAX prints this attribute
        self._has_warned = False
        self._tidy()

    def get(self, key: str) -> bytes | None:
        """Return the program stored under a key; None if there is no usable program."""
        file = self._file(key)
        try:
            value = self._read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once("cannot be read", error)
            return None
        if not is_whole_program(value):
            log.warning("a program in the compilation cache is truncated and will be compiled again: %s", file)
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Save a program under a key. JAX calls this only in process 0."""
        fresh = self._path / f".{uuid.uuid4().hex}{_UNFINISHED}"
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.touch(mode=0o600, exist_ok=False)
            fresh.write_bytes(value)
            fresh.replace(self._file(key))
        except OSError as error:
            self._warn_once("cannot be written", error)
            with suppress(OSError):
                fresh.unlink()

    def _read(self, file: Path) -> bytes:
        """Read a file that only this user or root could have written.

        Raises:
            OSError: the file cannot be read, or someone else could have written it.
        """
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        with open(file, "rb", opener=lambda path, given: os.open(path, given | flags)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EPERM, f"{file.name} is not a regular file")
            if (owner := _other_writer(status)) is not None:
                raise OSError(errno.EPERM, f"{file.name} can be written by {owner}, and this process would run it")
            value = stream.read()
        with suppress(OSError):
            os.utime(file)  # mark it as used, for `_tidy`
        return value

    def _tidy(self) -> None:
        """Remove abandoned partial files and, only in the default directory, programs that have not been used for a
        long time."""
        old = {f".*{_UNFINISHED}": _HOUR}
        if self._path == compiled_folder():
            old["*-cache"] = _UNUSED_DAYS * 24 * _HOUR
        for pattern, seconds in old.items():
            with suppress(OSError):  # the directory may be unreadable, as in another user's home folder
                for file in self._path.glob(pattern):
                    _remove_older(file, seconds)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}-cache"

    def _warn_once(self, what: str, error: OSError) -> None:
        if not self._has_warned:
            log.warning("the compilation cache %s: %s: %s", what, self._path, error.strerror)
        self._has_warned = True
