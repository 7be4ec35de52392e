"""Hydra's own sweeper, with our check in front of it."""

from collections.abc import Sequence
from itertools import chain

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class XlstmSweeper(BasicSweeper):
    """Checks every point of the sweep before the first job starts."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check all batches at once, when the first one is about to start."""
        if self.batch_index > 1:
            return
        from xlstm_hydra.hydra import check_points

        assert self.hydra_context is not None and self.config is not None and self.overrides is not None
        loader, hydra = self.hydra_context.config_loader, self.config.hydra
        points = chain.from_iterable(self.overrides)
        check_points(loader, hydra.job.config_name, points, always=hydra.overrides.hydra)
