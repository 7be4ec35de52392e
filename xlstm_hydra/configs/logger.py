"""What is shown and written while a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, affects
from ._rules import at_least


@config_dataclass
class LoggerConfig(ConfigDict, schema="logger"):
    """Progress on the terminal and metrics in the run folder."""

    log_every_n_steps: int = field(default=10, metadata=affects(BOOKKEEPING))
    """Steps between two lines of metrics; a line averages the loss over them."""

    progress: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Show a progress bar on a terminal (elsewhere: a line of text per `log_every_n_steps`)."""

    csv: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Write `metrics.csv` in the run folder."""

    tensorboard: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Write TensorBoard events in the run folder's `tensorboard`."""

    def rules(self) -> Iterator[Problem]:
        """Ranges."""
        yield from at_least(self, 1, "log_every_n_steps")
