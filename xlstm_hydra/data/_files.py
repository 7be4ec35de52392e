"""The files of a corpus, ordered by the hashes of their relative paths. File names may contain any bytes."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from xlstm_hydra._logging import log
from xlstm_hydra.configs import StdlibDataConfig, TextDataConfig
from xlstm_hydra.configs.data import ByteDataConfig
from xlstm_hydra.problems import ConfigError, Problem

_SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
"""Folders of the Python standard library that are excluded from the corpus."""
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_FIX = "Give a file, a folder with files in it, or a glob such as 'books/**/*.txt' (in quotes)."


def find_documents(config: ByteDataConfig) -> tuple[Path, list[Path], list[int]]:
    """Return the root folder of a corpus, the files in it, and the file sizes in bytes.

    Raises:
        ConfigError: no files were found, or a file cannot be read.
    """
    if isinstance(config, TextDataConfig):
        with_key = {"data.path": config.path}
        try:
            root, found = _text_files(config.path)
        except OSError as error:
            raise ConfigError([Problem(with_key, _unreadable(error, config.path))]) from None
    else:
        assert isinstance(config, StdlibDataConfig)
        with_key = {"data.name": config.name}
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [file for file in root.rglob("*.py") if not _SKIPPED & set(file.relative_to(root).parts)]
    sizes = dict(_sizes(with_key, found))
    if not sizes:
        raise ConfigError([Problem(with_key, f"no files found (current folder: {show_path(Path.cwd())})", _FIX)])
    files = sorted(sizes, key=lambda file: hashlib.sha256(_bytes(file.relative_to(root).as_posix())).digest())
    return root, files, [sizes[file] for file in files]


def show_path(path: Path | str) -> str:
    """Return a path as one line of printable text. Other characters and bytes are escaped."""
    text = _bytes(str(path)).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text_files(path: str) -> tuple[Path, list[Path]]:
    """Return the root folder of the corpus at `data.path`, and the paths in it that may be regular files.

    `path` is a file, a folder, or a glob.
    """
    expanded = Path(os.path.expanduser(path))
    if glob.has_magic(path) and not os.path.lexists(expanded):
        plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), expanded.parts))
        return Path(*plain), _matches(str(expanded))
    try:
        kind = stat.S_IFMT(expanded.stat().st_mode)
    except FileNotFoundError:
        if os.path.islink(expanded):
            raise
        return expanded, []
    if kind == stat.S_IFDIR:
        return expanded, _walk(expanded)
    if kind != stat.S_IFREG:
        raise ConfigError([Problem({"data.path": path}, f"is {_KINDS.get(kind, 'not a file')}", _FIX)])
    return expanded.parent, [expanded]


def _matches(pattern: str) -> list[Path]:
    """Return the paths that match a glob and are not folders. A file that matches through several linked folders is
    listed once."""
    found: dict[str, Path] = {}
    for name in sorted(glob.glob(pattern, recursive=True)):
        if not os.path.isdir(name):
            found.setdefault(os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name)), Path(name))
    return list(found.values())


def _walk(root: Path) -> list[Path]:
    """Return all paths below a folder that are not folders. Links to folders are followed, and hidden names skipped."""
    files, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            files += [Path(folder, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return files


def _raise(error: OSError) -> None:
    raise error


def _sizes(given: dict[str, str], files: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """Yield each file with its size in bytes. Paths that are not regular files, such as FIFOs, are skipped with a
    warning.

    Raises:
        ConfigError: a file cannot be read.
    """
    unreadable, others = [], []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            unreadable.append(_unreadable(error, file))
            continue
        if not stat.S_ISREG(status.st_mode):
            others.append(f"{show_path(file)} is {_KINDS.get(stat.S_IFMT(status.st_mode), 'not a file')}")
        elif not os.access(file, os.R_OK):
            unreadable.append(_unreadable(PermissionError(None, "Permission denied"), file))
        else:
            yield file, status.st_size
    if unreadable:
        more = f"; in total, {len(unreadable)} files cannot be read" if len(unreadable) > 1 else ""
        fix = "Make these files readable, remove them, or use a glob that does not match them."
        raise ConfigError([Problem(given, f"{unreadable[0]}{more}", fix)])
    if others:
        log.warning("skipped %d paths that are not regular files, for example %s", len(others), others[0])


def _unreadable(error: OSError, file: Path | str) -> str:
    place = Path(os.fsdecode(error.filename or file))
    if isinstance(error, FileNotFoundError) and place.is_symlink():
        return f"{show_path(place)} is a link to {show_path(os.readlink(place))}, which does not exist"
    return f"{show_path(place)} cannot be read: {error.strerror}"
