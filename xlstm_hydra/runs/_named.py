"""The saved runs and sweeps that a command line names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ._paths import FOLDER, is_checkpoint, saved_steps

_KEYS = ("--from", "resume", "resume_sweep")
_SOURCE = re.compile(r"ckpt://([^'\",\]]+)")


def named_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders that a command line names with `--from`, `resume=`, `resume_sweep=` or `ckpt://`."""
    texts = [*arguments, ""]
    places = [after for text, after in zip(texts, texts[1:], strict=False) if text == "--from"]
    places += [text.partition("=")[2] for text in texts if text.partition("=")[0] in _KEYS]
    places += [match[1] for text in texts for match in _SOURCE.finditer(text)]
    return run_folders(places)


def run_folders(places: Iterable[str]) -> list[Path]:
    """Return the folders of the runs or sweeps that lie at places such as RUN, RUN@STEP or the path of a checkpoint."""
    found: list[Path] = []
    for place in places:
        with suppress(OSError, ValueError):  # such as a path that is too long, of which a message follows
            found += _roots(place.strip("'\""))
    return found


def _roots(place: str) -> Iterator[Path]:
    if not place or "://" in place:
        return
    for name in {place, place.rpartition("@")[0] or place}:
        for path in {Path(os.path.abspath(name)), Path(os.path.realpath(name))}:
            yield path
            yield from (above.parent.parent for above in (path, *path.parents) if _is_step(above))
            if path.name == FOLDER and saved_steps(path.parent):
                yield path.parent


def _is_step(folder: Path) -> bool:
    return folder.parent.name == FOLDER and is_checkpoint(folder)
