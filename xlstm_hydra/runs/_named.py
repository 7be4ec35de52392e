"""The saved runs and sweeps that a command line names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ._paths import FOLDER, is_checkpoint, saved_steps

_KEYS = ("--from", "resume", "resume_sweep", "task.checkpoint", "checkpoint.init_from", "checkpoint.restore")
_SOURCE = re.compile(r"ckpt://([^'\",\]]+)")
_SWEEP, _METADATA = "sweep.jsonl", "metadata"
"""Names of the record in the folder of a sweep, and of the folder of the metadata in a checkpoint."""


def named_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders of the runs and sweeps that a command line names: with `--from`, `ckpt://`, `resume=`,
    `resume_sweep=`, or as the checkpoint of a key."""
    texts = [*arguments, ""]
    places = [after for text, after in zip(texts, texts[1:], strict=False) if text == "--from"]
    places += [text.partition("=")[2] for text in texts if text.partition("=")[0].lstrip("+") in _KEYS]
    places += [match[1] for text in texts for match in _SOURCE.finditer(text)]
    return run_folders(places)


def run_folders(places: Iterable[str]) -> list[Path]:
    """Return the folders of the runs or sweeps that lie at places such as RUN, RUN@STEP, the path of a checkpoint or of
    a file in one of them."""
    found: list[Path] = []
    for place in places:
        with suppress(OSError, ValueError):  # such as a path that is too long, of which a message follows
            found += _roots(place.strip("'\""))
    return found


def _roots(place: str) -> Iterator[Path]:
    if not place or "://" in place:
        return
    place = os.path.expanduser(place)
    for name in {place, place.rpartition("@")[0] or place}:
        for path in {Path(os.path.abspath(name)), Path(os.path.realpath(name))}:
            if path.is_file():
                yield from (path.parent, *([path.parents[1]] if path.parent.name == _METADATA else []))
            else:
                yield path
            for above in (path, *path.parents):
                yield from _around(above)


def _around(folder: Path) -> Iterator[Path]:
    """Yield the folder of the run or sweep to which a folder belongs, as its name and its content show."""
    if (folder / _SWEEP).is_file():
        yield folder
    if folder.parent.name == FOLDER and is_checkpoint(folder):
        yield folder.parent.parent
    if folder.name == FOLDER and saved_steps(folder.parent):
        yield folder.parent
