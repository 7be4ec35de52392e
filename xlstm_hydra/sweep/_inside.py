"""Nothing that lies in the folder of a sweep, which may come from someone else, leads out of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import refuse_links_out

from ._outcomes import LOCK_FILE, RECORD_FILE, Outcome

_FIX = "Begin another sweep in another folder (hydra.sweep.dir=DIR)."
_WRITTEN = (RECORD_FILE, LOCK_FILE, ".sweeping.lock", "command.json", "multirun.yaml", "study.db")


def refuse_sweep_links(folder: Path, key: str = "hydra.sweep.dir") -> None:
    """Make sure that no link in the folder of a sweep leads out of it. Only where a sweep is recorded, all that is in
    the folder is looked at: a new one may begin in a folder that has other things.

    Raises:
        ConfigError: with the first link that does.
    """
    numbered = [item for item in folder.iterdir() if item.name.isdigit()] if folder.is_dir() else []
    is_recorded = os.path.lexists(folder / RECORD_FILE)
    paths = [folder] if is_recorded else [*(folder / name for name in _WRITTEN), *numbered]
    refuse_links_out(folder, paths, {key: str(folder)}, f"Remove it. {_FIX}")


def refuse_folders_outside(folder: Path, record: Iterable[Outcome], key: str = "hydra.sweep.dir") -> None:
    """Make sure that the recorded folders of the jobs are in the folder of the sweep.

    Raises:
        ConfigError: with the first one that is not.
    """
    inside = os.path.realpath(folder)
    for one in record:
        path = os.path.realpath(os.path.join(inside, one.folder or str(one.job)))
        if os.path.commonpath([inside, path]) != inside:
            text = (
                f"the recorded folder of its job {one.job} is {one.folder!r}, which is not in the folder of the sweep"
            )
            raise ConfigError([Problem({key: str(folder)}, text, _FIX)])
