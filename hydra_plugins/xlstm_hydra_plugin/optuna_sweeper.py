"""Sweeper for `hydra/sweeper=optuna`, which minimizes the validation loss."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs an Optuna study. See `xlstm_hydra.sweep.Study`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings, and create the study."""
        from xlstm_hydra.sweep import Study

        self.study = Study(self.settings, hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials. If no trial completes, exit with the exit status of the trials."""
        self.study.run(arguments)
