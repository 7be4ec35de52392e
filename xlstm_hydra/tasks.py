"""The tasks of a run: train, evaluate, generate and plan. Importing the function of a task loads JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from xlstm_hydra.configs import RunConfig, resolve_classes
from xlstm_hydra.runs import find_starting_point, refuse_to_overwrite, step_of, verification

Task = Callable[[RunConfig, Path, list[str]], float | None]
"""Function of a task. Its arguments are the run, its folder, and the overrides of its config."""


def run_task(run: RunConfig, folder: Path, overrides: Sequence[str]) -> float | None:
    """Run the task of a run.

    Args:
        run: the checked config.
        folder: of the run.
        overrides: of its config.

    Returns:
        The value that a sweeper minimizes: the final loss, or the planned time of a step. None: there is no value.
    """
    return TASKS[run.task.name]()(run, folder, list(overrides))


def _train() -> Task:
    from xlstm_hydra.train import train

    return train


def _evaluate() -> Task:
    from xlstm_hydra.inference import evaluate

    return evaluate


def _generate() -> Task:
    from xlstm_hydra.inference import generate

    return generate


def _plan() -> Task:
    from xlstm_hydra.plan import plan

    return plan


TASKS = {"train": _train, "evaluate": _evaluate, "generate": _generate, "plan": _plan}
"""Imports of the function of each task, by name."""


def is_unfinished(run: RunConfig, folder: Path) -> bool:
    """True if a run has something left to do in its folder. Nothing is written yet, so that a run that is rejected
    does not destroy the content of the folder.

    Raises:
        ConfigError: the folder belongs to another run, or the checkpoint to start from is damaged or does not fit.
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
