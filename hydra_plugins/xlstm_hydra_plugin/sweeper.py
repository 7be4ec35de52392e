"""Sweeper for `hydra/sweeper=xlstm`, which checks and plans every point before the first job starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class XlstmSweeper(Sweeper):
    """Runs a job for each combination of values. See `xlstm_hydra.hydra.SweeperConfig` for its settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher, which composes jobs with `SweepLoader`."""
        from xlstm_hydra.hydra import SweepLoader

        loader = SweepLoader(hydra_context.config_loader)
        context = replace(hydra_context, config_loader=loader)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )
        self.of_sweep = config, loader, launcher

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs. If jobs fail, exit with their exit status."""
        from xlstm_hydra.hydra import SweeperConfig
        from xlstm_hydra.sweep import run_sweep

        return run_sweep(*self.of_sweep, SweeperConfig.of(self.settings), arguments)
