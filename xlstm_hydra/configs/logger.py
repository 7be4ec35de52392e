"""Config group `logger`: progress and metrics of a run."""

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
    """Number of steps between two lines of metrics. Each line contains the loss averaged over these steps."""

    progress: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Show a progress bar if the output is a terminal. Otherwise, a line of text is printed every `log_every_n_steps`
    steps."""

    verbose: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Print the complete plan at the start of a run, as in `plan.txt` in the run folder: the parameters of each module,
    and the memory, FLOPs, communication and time of a step."""

    csv: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Write the metrics to `metrics.csv` in the run folder."""

    tensorboard: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Write TensorBoard events to `tensorboard/` in the run folder."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges."""
        yield from at_least(self, 1, "log_every_n_steps")
