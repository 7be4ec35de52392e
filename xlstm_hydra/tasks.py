"""The tasks: what is done with a run whose config is known to be good. JAX is loaded when one of them is."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path

from xlstm_hydra.configs import RunConfig, resolve_classes
from xlstm_hydra.runs import find_starting_point, refuse_to_overwrite, step_of, verification

TASKS = {
    "train": "xlstm_hydra.train",
    "evaluate": "xlstm_hydra.inference",
    "generate": "xlstm_hydra.inference",
    "plan": "xlstm_hydra.plan",
}
"""The module in which the function of a task is, under the task's name."""


def run_task(run: RunConfig, folder: Path, overrides: Sequence[str]) -> float | None:
    """Do the task of a run.

    Args:
        run: the checked config.
        folder: of the run.
        overrides: with which its config was composed.

    Returns:
        What a sweeper minimizes: the loss at the end, or the time of a step that is planned. None: there is none.
    """
    name = run.task.name
    return getattr(importlib.import_module(TASKS[name]), name)(run, folder, list(overrides))


def is_unfinished(run: RunConfig, folder: Path) -> bool:
    """True if a run has something left to do in its folder. Nothing is written there yet, so that what is in it is not
    lost to a run that will be refused.

    Raises:
        ConfigError: the folder has another run, or the checkpoint to start from is damaged or does not fit.
    """
    with verification(run.checkpoint.verify):
        start = find_starting_point(run, folder)
        if not start.is_own:
            first_step = 0 if start.checkpoint is None else step_of(start.checkpoint)
            refuse_to_overwrite(folder, first_step, start.damaged)
        if start.checkpoint is None:
            return True
        if start.is_done(run.trainer.max_steps):
            return False
        from xlstm_hydra.train import read_resumed

        read_resumed(dataclasses.replace(run, model=resolve_classes(run.model)), start.checkpoint)
    return True
