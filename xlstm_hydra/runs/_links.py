"""Protection against symbolic links that lead out of a folder. A run folder or a checkpoint may come from someone else,
so files outside the folder must not be read, written or deleted through a link in it.

Two kinds of links are allowed: the folder itself may be a link, such as `outputs` on another disk, and a link may have
its target in the same folder, such as `latest`."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from xlstm_hydra.problems import ConfigError, Problem

_RULE = "which leads out of the folder; nothing is read, written or deleted through such a link"


def refuse_links_out(root: Path, paths: Iterable[Path], given: Mapping[str, Any], fix: str) -> None:
    """Check that no file at or below some paths is a link out of the folder `root`, a pipe or a device.

    Args:
        root: the folder. It may itself be a link.
        paths: files and folders in `root`, which need not exist. Folders are checked with all their contents.
        given: the config key that sets the folder, with its value, for the message.
        fix: the fix, for the message.

    Raises:
        ConfigError: such a file exists. The message names the first such file.
    """
    if (text := next(_strays(root, paths), None)) is not None:
        raise ConfigError([Problem(given, text, fix)])


def _strays(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Yield a message for every file that is not allowed. The targets of links within the folder are checked too."""
    inside, seen = os.path.realpath(root), set[str]()
    todo = deque((str(part), part == path) for path in paths for part in _parts(root, path))
    while todo:
        path, is_whole = todo.popleft()
        if path in seen or (mode := _mode(path)) is None:
            continue
        if is_whole:
            seen.add(path)
        if stat.S_ISLNK(mode):
            target = os.path.realpath(path)
            if not _is_in(target, inside):
                yield f"{path} is a link to {os.readlink(path)}, {_RULE}"
            todo.append((target, is_whole))
        elif stat.S_ISDIR(mode):
            todo += [(item, True) for item in sorted(each.path for each in os.scandir(path))] if is_whole else []
        elif not stat.S_ISREG(mode):
            yield f"{path} is a pipe, a socket or a device; expected a file or a folder"


def _parts(root: Path, path: Path) -> list[Path]:
    """Return the folders between `root` and a path, followed by the path. Empty for a path outside `root`."""
    between = [part for part in (path, *path.parents) if root in part.parents]
    return [path] if path == root else between[::-1]


def _mode(path: str) -> int | None:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def open_new(file: Path, newline: str | None = None) -> IO[str]:
    """Open a new text file. An existing file or link at the path is removed; links are not followed."""
    file.unlink(missing_ok=True)
    return file.open("x", encoding="utf-8", newline=newline)


def replace_file(file: Path, text: str) -> None:
    """Write a file atomically: at any time, readers find either the old or the new content. A link at the path is
    replaced, not followed."""
    fresh = file.with_name(f".{file.name}.{os.urandom(8).hex()}")
    try:
        with open_new(fresh) as stream:
            stream.write(text)
        fresh.replace(file)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename, error.filename2 = str(file), None
        raise
