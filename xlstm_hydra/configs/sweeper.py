"""Settings of the sweeper `hydra/sweeper=xlstm`."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, nearest

from .launcher import LocalLauncherConfig, SlurmLauncherConfig


class OnInvalid(enum.Enum):
    """Action for jobs that break a rule or do not fit on their devices."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True)
class SweeperConfig:
    """The sweeper that composes, checks and plans all jobs before the first one starts."""

    _target_: str = "hydra_plugins.xlstm_hydra_plugin.sweeper.XlstmSweeper"

    max_batch_size: int | None = None
    """Maximum number of jobs passed to the launcher at once. The next jobs start when all of these have ended. null:
    all jobs at once."""

    max_jobs: int | None = 10_000
    """Maximum number of jobs in a sweep. The jobs are counted before any job is created, and a larger sweep is
    rejected. null: no limit."""

    params: dict[str, str] | None = field(default_factory=dict)
    """Mapping of keys to values: overrides that are applied before those on the command line, which take precedence."""

    on_invalid: OnInvalid = OnInvalid.stop
    """Action for jobs that break a rule or do not fit on their devices. stop: no job starts. skip: only the other jobs
    start."""

    num_samples: int | None = None
    """Number of random samples from the intervals in a sweep, such as `optimizer.lr=interval(1e-4,1e-3)`. Every sample
    is run with all combinations of the other values. null: there are no intervals."""

    seed: int = 0
    """Random seed for sampling from intervals and for `shuffle(...)`."""

    resume: bool = False
    """Continue the sweep in `hydra.sweep.dir`: run only its missing and failed jobs."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> SweeperConfig:
        """Create the config from the settings in `hydra.sweeper`.

        Raises:
            ConfigError: a setting is unknown."""
        known = [each.name for each in fields(SweeperConfig) if each.name != "_target_"]
        if unknown := [key for key in settings if key not in known]:
            raise ConfigError(
                [Problem.about(f"hydra.sweeper.{key}", "no such key", nearest(key, known)) for key in unknown]
            )
        return SweeperConfig(**settings)

    def rules(self) -> Iterator[Problem]:
        """Yield every broken rule."""
        for key in ("max_batch_size", "max_jobs", "num_samples"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield Problem({f"hydra.sweeper.{key}": value}, "must be 1 or more, or null")


PLUGIN_CLASSES: dict[str, dict[str, type]] = {
    "hydra/sweeper": {"sweeper": SweeperConfig},
    "hydra/launcher": {"slurm": SlurmLauncherConfig, "local": LocalLauncherConfig},
}
"""Config classes of our Hydra plugins, by group and by the name of the schema in defaults lists."""
