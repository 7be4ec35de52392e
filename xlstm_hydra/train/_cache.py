"""Programs that were compiled before: kept on disk for the other jobs of a sweep, and counted.

JAX keeps compiled programs under a key of all that they depend on. Where and which is set here for one run, and undone
after it. What JAX writes in place, and never again where a kill has cut it off, is written and mended here instead.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from xlstm_hydra._jax_internals import is_whole_program, use_cache
from xlstm_hydra.configs import TrainerConfig
from xlstm_hydra.configs.trainer import CACHE_FOLDER

from ._log import log

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


@dataclass
class Programs:
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
def compilation_cache(config: TrainerConfig, folder: Path) -> Iterator[Programs]:
    """Keep what is compiled inside, and count it.

    Args:
        config: says where.
        folder: of the run.
    """
    programs, place = Programs(), _place(config, folder)
    wanted: dict[str, Any] = {"jax_compilation_cache_dir": place}
    wanted |= {name: value for name, value in _SETTINGS.items() if name.upper() not in os.environ}
    before = {name: jax.config.values[name] for name in wanted}
    jax.monitoring.register_event_listener(programs._event)
    jax.monitoring.register_event_duration_secs_listener(programs._duration)
    try:
        _set(wanted, place)
        yield programs
    finally:
        _set(before, None)
        jax.monitoring.unregister_event_listener(programs._event)
        jax.monitoring.unregister_event_duration_listener(programs._duration)


def _set(settings: dict[str, Any], place: str | None) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    use_cache(None if place is None or "://" in place else _Store(Path(place)))


def _place(config: TrainerConfig, folder: Path) -> str | None:
    """The folder of the cache, or None. A folder of an object store is JAX's own matter."""
    if config.compilation_cache_dir is None:
        return None
    if config.compilation_cache_dir != "auto":
        return str(Path(config.compilation_cache_dir).expanduser().absolute())
    if known := jax.config.values["jax_compilation_cache_dir"]:
        return str(known)
    folder = folder.absolute()
    place = (folder if folder == Path.cwd() else folder.parent) / CACHE_FOLDER
    if _others_may_write(place):
        log.warning("%s is not used: others may write programs there, which would be run here", place)
        return None
    return str(place)


def _others_may_write(folder: Path) -> bool:
    """Whether what is in a folder may be from someone else."""
    try:
        status = folder.stat()
    except OSError:
        return False  # it is not there, or cannot be read
    return status.st_uid not in (os.getuid(), 0) or bool(status.st_mode & 0o002)


class _Store:
    """Compiled programs as files, under the names that JAX gives them.

    A file is written whole or not at all. One that is not whole, since another program has written it, is told and
    replaced. Where nothing can be read or written, that is told once, and the run goes on without.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder  # JAX shows it
        self._told = False
        self._tidy()

    def get(self, key: str) -> bytes | None:
        """What is kept under a key."""
        file = self._file(key)
        try:
            value = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell("cannot be read", error)
            return None
        if not is_whole_program(value):
            log.warning("a compiled program was cut off, and is compiled again: %s", file)
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a program. JAX does so in process 0 alone."""
        fresh = self._path / f".{uuid.uuid4().hex}{_UNFINISHED}"
        try:
            self._path.mkdir(mode=0o755, parents=True, exist_ok=True)
            fresh.write_bytes(value)
            fresh.replace(self._file(key))
        except OSError as error:
            self._tell("cannot be written", error)
            with suppress(OSError):
                fresh.unlink()

    def _tidy(self) -> None:
        """Remove what kills have left behind."""
        for file in self._path.glob(f".*{_UNFINISHED}"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _HOUR:
                    file.unlink()

    def _file(self, key: str) -> Path:
        return self._path / f"{key}-cache"

    def _tell(self, what: str, error: OSError) -> None:
        if not self._told:
            log.warning("the folder of compiled programs %s: %s: %s", what, self._path, error.strerror)
        self._told = True
