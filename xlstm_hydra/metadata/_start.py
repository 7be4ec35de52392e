"""Where a run begins: anew, at the checkpoint that it names, or at the newest one in its own folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xlstm_hydra.configs import AUTO, RunConfig

from ._find import find_checkpoint
from ._places import FOLDER, has_metadata, refused, saved_checkpoints, step_of

RESTARTS = "SLURM_RESTART_COUNT"
"""Variable that says how often SLURM has started a job again."""

ASIDE = "damaged_checkpoints"
"""Folder in a run folder for checkpoints that cannot be read."""


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    checkpoint: Path | None
    """None: anew."""

    is_own: bool = False
    """Whether it was looked for in the run's own folder."""

    weights: Path | None = None
    """What it takes its parameters from, where it begins anew."""

    damaged: tuple[Path, ...] = ()
    """Later checkpoints there, which cannot be read."""

    def is_done(self, max_steps: int) -> bool:
        """Whether the run, which goes on by itself, has nothing left to do."""
        return self.is_own and self.checkpoint is not None and step_of(self.checkpoint) >= max_steps

    def set_damaged_aside(self) -> Iterator[tuple[Path, Path]]:
        """Move the damaged ones to where they count no more, so that the run can save these steps again."""
        for checkpoint in self.damaged:
            folder = checkpoint.parents[1] / ASIDE
            folder.mkdir(exist_ok=True)
            paths = (folder / f"{checkpoint.name}_{number}" for number in itertools.count(1))
            yield checkpoint, checkpoint.rename(next(path for path in paths if not path.exists()))


def is_restarted() -> bool:
    """Whether SLURM has started this job again."""
    count = os.environ.get(RESTARTS, "0")
    return count.isdigit() and int(count) > 0


def find_start(run: RunConfig, folder: Path, unreadable: Iterable[Path] = ()) -> Start:
    """Where a run begins. One that SLURM has started again goes on in its own folder, if there is a checkpoint.

    Args:
        run: the config.
        folder: its own folder.
        unreadable: checkpoints in that folder that turned out to be damaged.

    Raises:
        ConfigError: there is no such checkpoint, or all in the run's own folder are damaged.
    """
    place = run.checkpoint.restore
    if place == AUTO or is_restarted():
        own = saved_checkpoints(folder.absolute())
        whole = [step for step in own if own[step] not in {*unreadable} and has_metadata(own[step])]
        if whole:
            newest = max(whole)
            return Start(own[newest], True, damaged=tuple(own[step] for step in sorted(own) if step > newest))
        if own:
            text = f"none of the checkpoints in {folder.absolute() / FOLDER} can be read"
            raise refused(str(place or AUTO), text, "Choose another folder (hydra.run.dir) to begin anew.")
        if place == AUTO:
            return Start(None, True)
    return Start(None if place is None else find_checkpoint(place))
