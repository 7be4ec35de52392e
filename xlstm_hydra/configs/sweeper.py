"""Settings of the sweeper `hydra/sweeper=xlstm`."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, nearest


class OnInvalid(enum.Enum):
    """Reaction of a sweep to invalid points."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True)
class SweeperConfig:
    """Settings of `hydra/sweeper=xlstm`."""

    _target_: str = "hydra_plugins.xlstm_hydra_plugin.sweeper.XlstmSweeper"

    max_batch_size: int | None = None
    """Maximum number of jobs given to the launcher at once; the next ones start when these have ended. null: all."""

    max_jobs: int | None = 10_000
    """Maximum number of jobs of a sweep. Jobs are counted before any is made, and a larger sweep is rejected.
    null: no limit."""

    params: dict[str, str] | None = field(default_factory=dict)
    """Overrides that are applied before those of the command line, which take precedence."""

    on_invalid: OnInvalid = OnInvalid.stop
    """Reaction to points that break a rule or do not fit their devices. stop: no job starts. skip: the other jobs
    start."""

    num_samples: int | None = None
    """Number of random draws from the intervals. Each draw runs with all combinations of the other values."""

    seed: int = 0
    """Seed of random draws and of `shuffle(...)`."""

    resume: bool = False
    """True: continue the sweep in `hydra.sweep.dir` with its missing and failed jobs."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> SweeperConfig:
        """Make the config from the settings of the sweeper.

        Raises:
            ConfigError: there is an unknown setting.
        """
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
