"""Starting point of a run: from scratch, from a given checkpoint, or from the newest checkpoint in the run folder."""

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
"""Environment variable in which SLURM counts the restarts of a job."""

ASIDE = "damaged_checkpoints"
"""Name of the folder in a run folder to which damaged checkpoints are moved."""
METRICS = "metrics"
"""Name of the checkpoint item with the validation loss, by which checkpoints are ranked."""

RECORD = ("metadata", "data", METRICS)
"""Names of the checkpoint items without arrays, which are read before devices are initialized."""


@dataclass(frozen=True)
class StartingPoint:
    """Starting point of a run."""

    checkpoint: Path | None
    """The checkpoint to continue from. None: start from scratch."""

    is_own: bool = False
    """True if the run continues in its own run folder, after a restart by SLURM or with `checkpoint.restore=auto`. In
    the second case it is true even if there is no checkpoint yet."""

    weights: Path | None = None
    """Source of the initial parameters, if the run starts from scratch."""

    is_newest: bool = False
    """True if the checkpoint was chosen as the newest readable checkpoint of a run. If its arrays are damaged, an
    earlier checkpoint can be used."""

    skipped: tuple[Path, ...] = ()
    """Damaged checkpoints of the same run: later checkpoints that cannot be read, and checkpoints whose validation loss
    cannot be read."""

    damaged: tuple[Path, ...] = ()
    """The checkpoints among `skipped` that are in the run's own folder."""

    def is_done(self, max_steps: int) -> bool:
        """True if the run continues in its own folder and has already trained for `max_steps` steps."""
        return self.is_own and self.checkpoint is not None and step_of(self.checkpoint) >= max_steps

    def set_damaged_aside(self) -> Iterator[tuple[Path, Path]]:
        """Move the damaged checkpoints to another folder, so that the run can save their steps again. Yield the old and
        new path of each."""
        for checkpoint in self.damaged:
            folder = checkpoint.parents[1] / ASIDE
            folder.mkdir(exist_ok=True)
            paths = (folder / f"{checkpoint.name}_{number}" for number in itertools.count(1))
            yield checkpoint, checkpoint.rename(next(path for path in paths if not path.exists()))


def is_restarted() -> bool:
    """True if SLURM has restarted this job."""
    count = os.environ.get(RESTARTS, "0")
    return count.isdigit() and int(count) > 0


def find_starting_point(run: RunConfig, folder: Path, unreadable: Iterable[Path] = ()) -> StartingPoint:
    """Return the starting point of a run. After a restart by SLURM, the run continues from the newest checkpoint in its
    own folder, if there is one.

    Args:
        run: the config of the run.
        folder: the run folder.
        unreadable: checkpoints that are already known to be damaged.

    Raises:
        ConfigError: the checkpoint to start from does not exist, or all checkpoints of the run are damaged.
    """
    source, own = run.checkpoint.restore, saved_checkpoints(folder.absolute())
    if source == AUTO or is_restarted():
        if own:
            fix = "To start from scratch, choose another folder (hydra.run.dir)."
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
    """Return the newest readable checkpoint of a run as the starting point. Arrays are verified later, when they are
    read; if they are damaged, this is called again with the checkpoint in `unreadable`."""
    left_out = {_identity(path) for path in unreadable}
    others = {step: path for step, path in saved.items() if _identity(path) not in left_out}
    whole = [step for step, path in others.items() if can_be_read(path, run.trainer.max_steps)]
    if not whole:
        folder = next(iter(saved.values())).parent
        source = str(run.checkpoint.restore or AUTO)
        fix = f"{fix} `xlstm-metadata check {folder.parent}` lists the damaged files."
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
    """True if the parts of a checkpoint that are verified before devices are initialized are intact."""
    return has_metadata(checkpoint) and not damage_before_start(checkpoint, max_steps)


def damage_before_start(checkpoint: Path, max_steps: int) -> list[Finding]:
    """Return the damage in the items of a checkpoint without arrays. If the checkpoint has reached `max_steps`, check
    all files, because a complete run does not read the arrays later."""
    step = step_in_name(checkpoint)
    return damage_in(checkpoint, *(() if step is not None and step >= max_steps else RECORD))
