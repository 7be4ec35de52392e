"""Hydra's own sweeper, with our check in front of it, and a comparison behind it."""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import OmegaConf


class XlstmSweeper(BasicSweeper):
    """Checks every point of the sweep before the first job starts, and compares plans when all have been made."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check all batches at once, when the first one is about to start."""
        if self.batch_index > 1:
            return
        from xlstm_hydra.hydra import check_points

        assert self.hydra_context is not None and self.config is not None and self.overrides is not None
        loader, hydra = self.hydra_context.config_loader, self.config.hydra
        points = chain.from_iterable(self.overrides)
        check_points(loader, hydra.job.config_name, points, always=hydra.overrides.hydra)

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs. Where none of the plans among them fits, the command ends with 3."""
        returns = super().sweep(arguments)
        plans = [job for job in chain.from_iterable(returns) if OmegaConf.select(job.cfg, "task.name") == "plan"]
        if plans:
            from xlstm_hydra.compare_plans import compare_plans

            assert self.config is not None
            jobs = [(job.overrides, Path(job.hydra_cfg.hydra.runtime.output_dir)) for job in plans]
            if not compare_plans(jobs, Path(self.config.hydra.sweep.dir)):
                sys.exit(3)
        return returns
