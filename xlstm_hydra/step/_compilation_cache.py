"""Programs that were compiled before: kept on disk for later runs, and counted.

JAX keeps compiled programs under a key of all that they depend on. Where and which is set here for one run, and undone
after it. What JAX writes in place, and never again where a kill has cut it off, is written and mended here instead.

A program in the cache is run as it is, so that whoever can put one there can run code here. Only files that belong to
this user, and that nobody else can write, are loaded. The folder is this user's own, or was named on the command line,
in the user's own config or in the environment: it does not depend on where the run folder is, since a run folder and
what is beside it may come from someone else.
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
"""Events of JAX. Getting a program from the cache is a compilation too."""

_SETTINGS: dict[str, Any] = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # what a small job compiles is small
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_persistent_cache_enable_xla_caches": None,  # their path would be in the key, and must be writable
}
"""Settings of JAX, beside the folder, unless the environment has them."""

_UNFINISHED, _HOUR = ".new", 3600.0
"""How the name of a file ends that is being written, and when nobody writes it any more."""

_OWN = Path("xlstm_hydra", "compiled")
"""Folder of the compiled programs in the user's cache folder."""

_UNUSED_DAYS = 30.0
"""Days after which a program that no run has loaded is removed from the user's cache folder."""


@dataclass
class CompilationStats:
    """The compiled programs of a run."""

    total: int = 0
    from_cache: int = 0
    seconds: float = 0.0
    """What getting them took, from the cache or from the compiler."""

    saved: float = 0.0
    """What compiling those from the cache has taken when they were put there, in whole seconds each, less what reading
    them took now."""

    @property
    def compiled(self) -> int:
        """How many the compiler made."""
        return self.total - self.from_cache

    def __str__(self) -> str:
        if not self.total:
            return "compiled: nothing, an earlier job of this process has compiled the same programs"
        text = f"compiled: {self.compiled} of {self.total} programs, {self.seconds:.1f} s"
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
    """Keep what is compiled inside in the folder that the config names, and count it."""
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
    """The folder of the cache, or None. A folder of an object store is JAX's own matter."""
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
        log.warning("compiled programs are not kept: this user has no home folder")
    elif (owner := _other_writer(_status(folder))) is not None:
        log.warning(
            "%s is not used: %s may write compiled programs there, which would run here. Choose another folder with "
            "trainer.compilation_cache_dir, or take the permission away: chmod go-w",
            *(folder, owner),
        )
        return None
    return None if folder is None else str(folder)


def compiled_folder() -> Path | None:
    """Return the folder in which compiled programs of this user are kept, or None for a user without a home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = Path(os.path.expanduser("~"))
    folder = cache if cache.is_absolute() else home / ".cache"
    return folder / _OWN if folder.is_absolute() else None


def _status(folder: Path) -> os.stat_result | None:
    try:
        return folder.stat()
    except OSError:
        return None  # it is not there, or cannot be read


def _other_writer(status: os.stat_result | None) -> str | None:
    """Return who else than this user (and root) may write a file, in words; None if nobody may."""
    if status is None:
        return None
    if status.st_uid not in (os.getuid(), 0):
        return f"its owner, the user {status.st_uid},"
    return next((who for who, bit in (("everyone", 0o002), ("its group", 0o020)) if status.st_mode & bit), None)


def _remove_older(file: Path, seconds: float) -> None:
    """Remove a file that was not used for a number of seconds. It may be gone, or belong to another user."""
    with suppress(OSError):
        if time.time() - file.stat().st_mtime > seconds:
            file.unlink()


class _Store:
    """Compiled programs as files, under the names that JAX gives them.

    A file is written whole or not at all. One that is not whole, since another program has written it, is reported and
    replaced. One that someone else could have written is not loaded. If nothing can be read or written, that is
    reported once, and the run continues without.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder  # JAX shows it
        self._has_warned = False
        self._tidy()

    def get(self, key: str) -> bytes | None:
        """What is kept under a key."""
        file = self._file(key)
        try:
            value = self._read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once("cannot be read", error)
            return None
        if not is_whole_program(value):
            log.warning("a compiled program was cut off, and is compiled again: %s", file)
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a program. JAX does so in process 0 alone."""
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
        """The content of a file that nobody but this user could have written.

        Raises:
            OSError: it cannot be read, or someone else could have written it.
        """
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        with open(file, "rb", opener=lambda path, given: os.open(path, given | flags)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EPERM, f"{file.name} is not a regular file")
            if (owner := _other_writer(status)) is not None:
                raise OSError(errno.EPERM, f"{owner} may write {file.name}, and it would run here")
            value = stream.read()
        with suppress(OSError):
            os.utime(file)  # it is in use, see `_tidy`
        return value

    def _tidy(self) -> None:
        """Remove what kills have left behind, and, in the folder that no user has named, what is not used any more."""
        old = {f".*{_UNFINISHED}": _HOUR}
        if self._path == compiled_folder():
            old["*-cache"] = _UNUSED_DAYS * 24 * _HOUR
        for pattern, seconds in old.items():
            with suppress(OSError):  # such as in the home folder of another user, which cannot be searched
                for file in self._path.glob(pattern):
                    _remove_older(file, seconds)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}-cache"

    def _warn_once(self, what: str, error: OSError) -> None:
        if not self._has_warned:
            log.warning("the folder of compiled programs %s: %s: %s", what, self._path, error.strerror)
        self._has_warned = True
