"""Hydra's own sweeper, with our check in front of it, and a comparison behind it."""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class XlstmSweeper(BasicSweeper):
    """Checks every point of the sweep before the first job starts, and compares plans when all have been made."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check all batches at once, when the first one is about to start."""
        if self.batch_index > 1:
            return
        from xlstm_hydra.hydra import check_points

        assert self.hydra_context is not None and self.config is not None and self.overrides is not None
        loader, hydra = self.hydra_context.config_loader, self.config.hydra
        points = list(chain.from_iterable(self.overrides))
        check_points(loader, hydra.job.config_name, points, always=hydra.overrides.hydra)
        from xlstm_hydra.sweep import begin

        begin(Path(hydra.sweep.dir), points)
        self.begun = True

    begun = False

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs. Where none of the plans among them fits, the command ends with 3."""
        error, returns = None, None
        try:
            returns = super().sweep(arguments)
        except BaseException as caught:
            if not self.begun:
                raise
            from xlstm_hydra.configs import ConfigError

            error = None if isinstance(caught, ConfigError) else caught
        from xlstm_hydra.sweep import finish

        assert self.config is not None
        if status := finish(Path(self.config.hydra.sweep.dir), error):
            sys.exit(status)
        return returns
