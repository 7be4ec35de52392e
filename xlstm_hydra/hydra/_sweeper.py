"""What may be said of a sweep itself: `hydra.sweeper.*`."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, nearest


class OnInvalid(enum.Enum):
    """What becomes of a sweep some of whose points are invalid."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True)
class SweeperConfig:
    """The option `hydra/sweeper=xlstm`."""

    _target_: str = "hydra_plugins.xlstm_hydra_plugin.sweeper.XlstmSweeper"

    max_batch_size: int | None = None
    """The most jobs that a launcher gets at once; the next ones follow when those have ended. null: all."""

    max_jobs: int | None = 10_000
    """The most jobs that a sweep may have. They are counted before any is made; a sweep with more is refused.
    null: no limit."""

    params: dict[str, str] | None = field(default_factory=dict)
    """Overrides that come before those of the command line, which replace them."""

    on_invalid: OnInvalid = OnInvalid.stop
    """What becomes of the sweep where points break a rule or do not fit their devices: no job starts, or they are
    skipped."""

    num_samples: int | None = None
    """How many values are drawn of the intervals, together, each with all combinations of the other values."""

    seed: int = 0
    """Of what is drawn or shuffled."""

    resume: bool = False
    """Whether to go on with the sweep that is in `hydra.sweep.dir`, with what is missing or failed."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> SweeperConfig:
        """The settings that the sweeper got.

        Raises:
            ConfigError: there is none of some name.
        """
        known = [each.name for each in fields(SweeperConfig) if each.name != "_target_"]
        if unknown := [key for key in settings if key not in known]:
            raise ConfigError(
                [Problem.about(f"hydra.sweeper.{key}", "no such key", nearest(key, known)) for key in unknown]
            )
        return SweeperConfig(**settings)

    def rules(self) -> Iterator[Problem]:
        """Every broken rule."""
        for key in ("max_batch_size", "max_jobs", "num_samples"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield Problem({f"hydra.sweeper.{key}": value}, "must be 1 or more", f"Or leave {key} at null.")
