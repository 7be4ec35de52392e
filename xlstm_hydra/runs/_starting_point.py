"""Where a run begins: anew, at the checkpoint that it names, or at the newest one in its own folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from xlstm_hydra.configs import AUTO, RunConfig

from ._find import checkpoints_of_run, find_checkpoint
from ._paths import FOLDER, has_metadata, refused, saved_checkpoints, step_in_name, step_of
from ._verify import Finding, damage_in

RESTARTS = "SLURM_RESTART_COUNT"
"""Variable that says how often SLURM has started a job again."""

ASIDE = "damaged_checkpoints"
"""Folder in a run folder for checkpoints that cannot be read."""
METRICS = "metrics"
"""Item of a checkpoint by which the best ones are kept."""

RECORD = ("metadata", "data", METRICS)
"""Items of a checkpoint without arrays, which are read before a device is started."""


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins."""

    checkpoint: Path | None
    """None: anew."""

    is_own: bool = False
    """Whether it was looked for in the run's own folder."""

    weights: Path | None = None
    """What it takes its parameters from, where it begins anew."""

    is_newest: bool = False
    """True if it is the newest checkpoint of a run that can be read, so that an earlier one may take its place."""

    skipped: tuple[Path, ...] = ()
    """Damaged checkpoints of that run: later ones, which cannot be read, and others whose rank is not known."""

    damaged: tuple[Path, ...] = ()
    """Those of them that are in the run's own folder."""

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


def find_starting_point(run: RunConfig, folder: Path, unreadable: Iterable[Path] = ()) -> StartingPoint:
    """Where a run begins. One that SLURM has started again goes on in its own folder, if there is a checkpoint.

    Args:
        run: the config.
        folder: its own folder.
        unreadable: checkpoints that turned out to be damaged.

    Raises:
        ConfigError: there is no such checkpoint, or all of the run are damaged.
    """
    source, own = run.checkpoint.restore, saved_checkpoints(folder.absolute())
    if source == AUTO or is_restarted():
        if own:
            fix = "Choose another folder (hydra.run.dir) to begin anew."
            return _newest(run, own, own, unreadable, fix)
        if source == AUTO:
            return StartingPoint(None, True)
    if source is None:
        return StartingPoint(None)
    if saved := checkpoints_of_run(source):
        is_own = bool(own) and any(
            isinstance(path, Path) and path.parent.samefile(folder / FOLDER) for path in saved.values()
        )
        return _newest(run, saved, own if is_own else {}, unreadable, "Choose another run.")
    return StartingPoint(find_checkpoint(source))


def _newest(
    run: RunConfig, saved: Mapping[int, Path], own: Mapping[int, Path], unreadable: Iterable[Path], fix: str
) -> StartingPoint:
    """Begin at the newest checkpoint of a run that can be read. Arrays are verified later, when they are read, and then
    listed in `unreadable`."""
    left_out = {_identity(path) for path in unreadable}
    others = {step: path for step, path in saved.items() if _identity(path) not in left_out}
    whole = [step for step, path in others.items() if can_be_read(path, run.trainer.max_steps)]
    if not whole:
        folder = next(iter(saved.values())).parent
        source = str(run.checkpoint.restore or AUTO)
        fix = f"{fix} `xlstm-metadata check {folder.parent}` names the damaged files."
        raise refused(source, f"none of the checkpoints in {folder} can be read", fix)
    newest, is_ranked = max(whole), run.checkpoint.keep == "best"
    damaged = [step for step in sorted(own) if step > newest or is_ranked and damage_in(own[step], METRICS)]
    skipped = tuple(saved[step] for step in sorted({*damaged, *(step for step in saved if step > newest)}))
    checkpoint = saved[newest] if saved is own else find_checkpoint(str(saved[newest]))
    set_aside = tuple(own[step] for step in damaged)
    return StartingPoint(checkpoint, is_own=saved is own, is_newest=True, skipped=skipped, damaged=set_aside)


def _identity(checkpoint: Path) -> str:
    return str(checkpoint.resolve() if isinstance(checkpoint, Path) else checkpoint)


def can_be_read(checkpoint: Path, max_steps: int) -> bool:
    """True if what is verified of a checkpoint before a device is started is there and intact."""
    return has_metadata(checkpoint) and not damage_before_start(checkpoint, max_steps)


def damage_before_start(checkpoint: Path, max_steps: int) -> list[Finding]:
    """Return what is wrong with what a checkpoint records of itself, or with any file of it if it has done `max_steps`,
    because a run that is complete reads no arrays later."""
    step = step_in_name(checkpoint)
    return damage_in(checkpoint, *(() if step is not None and step >= max_steps else RECORD))
