"""Run the task of a validated config. The module of a task, and with it JAX, is imported only when the task runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from xlstm_hydra.configs import RunConfig, resolve_classes
from xlstm_hydra.runs import find_starting_point, refuse_to_overwrite, step_of, verification

Task = Callable[[RunConfig, Path, list[str]], float | None]
"""Function that runs a task. Its arguments are the config of the run, the run folder, and the overrides that the config
was composed from."""


def run_task(run: RunConfig, folder: Path, overrides: Sequence[str]) -> float | None:
    """Run the task that is selected in the config of a run.

    Args:
        run: the checked config.
        folder: the run folder.
        overrides: the overrides that the config was composed from.

    Returns:
        The value that a sweeper minimizes: the final loss, or the predicted step time of a plan. None: the task has no
        such value.
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
"""For each task name, a function that imports the task and returns it."""


def is_unfinished(run: RunConfig, folder: Path) -> bool:
    """True if a run has steps left to train. Nothing is written, so a run that is rejected afterwards leaves the folder
    unchanged.

    Raises:
        ConfigError: the folder contains another run, or the checkpoint to start from is damaged or does not match.
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
