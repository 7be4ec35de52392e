"""Config group `scheduler`: learning-rate schedules with a warm-up, a main part and a cool-down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import NUMERICS, affects
from ._rules import at_least, own_name


@config_dataclass
class SchedulerConfig(ConfigDict):
    """Fields common to all schedules. The learning rate rises linearly from 0 to `optimizer.lr` (warm-up), follows the
    curve of the schedule (main part), and changes linearly to its final value (cool-down), where it stays."""

    name: str = field(metadata=affects(NUMERICS, compiled=False))
    """Name of the schedule, set by the selected option."""

    warmup_steps: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Number of steps in which the learning rate rises linearly from 0 to `optimizer.lr`. 0: no warm-up."""

    cooldown_steps: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Number of steps at the end in which the learning rate changes linearly to its final value. 0: no cool-down."""

    cooldown_lr_factor: float = field(default=0.0, metadata=affects(NUMERICS, compiled=False))
    """Final learning rate after the cool-down, as a multiple of `optimizer.lr`."""

    decay_steps: int | None = field(default=None, metadata=affects(NUMERICS, compiled=False))
    """Length of the whole schedule in steps, including warm-up and cool-down. null: same as `trainer.max_steps`."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, and that `cooldown_lr_factor` is set only with a cool-down."""
        yield from own_name(self)
        yield from at_least(self, 0, "warmup_steps", "cooldown_steps", "cooldown_lr_factor")
        yield from at_least(self, 1, "decay_steps")
        if self.cooldown_steps == 0 and self.cooldown_lr_factor != 0:
            given = {"cooldown_lr_factor": self.cooldown_lr_factor, "cooldown_steps": 0}
            yield Problem(given, "has no effect without a cool-down", "Set {cooldown_steps} above 0.")

    def length_rules(self, max_steps: int) -> Iterator[Problem]:
        """Check that warm-up and cool-down fit in a run of `max_steps` steps. Keys in problems are absolute."""
        warmup, cooldown = self.warmup_steps, self.cooldown_steps
        total, whole = self.decay_steps, "scheduler.decay_steps"
        if total is None:
            total, whole = max_steps, "trainer.max_steps"
        if min(warmup, cooldown) < 0 or not 0 < total < warmup + cooldown:
            return
        given = {"scheduler.warmup_steps": warmup, "scheduler.cooldown_steps": cooldown, whole: total}
        yield Problem(
            {key: value for key, value in given.items() if value},
            "warm-up and cool-down do not fit in the schedule",
            f"Set scheduler.warmup_steps to at most {max(total - cooldown, 0)}, "
            f"or {whole} to {warmup + cooldown} or more.",
        )


@config_dataclass
class ConstantConfig(SchedulerConfig):
    """A constant learning rate, `optimizer.lr`."""

    name: str = "constant"
    """Name of the schedule, set by the selected option."""

    def rules(self) -> Iterator[Problem]:
        """Check that `decay_steps` is set only with a cool-down, because it has no effect otherwise."""
        yield from super().rules()
        if self.decay_steps is not None and self.cooldown_steps == 0:
            given = {"decay_steps": self.decay_steps, "cooldown_steps": 0}
            yield Problem(given, "a constant schedule without a cool-down has no length", "Set {decay_steps}=null.")


@config_dataclass
class _DecayConfig(SchedulerConfig):
    """Fields common to all schedules whose main part is a decay."""

    end_lr_factor: float = field(default=0.1, metadata=affects(NUMERICS, compiled=False))
    """Learning rate at the end of the main part, as a multiple of `optimizer.lr`."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges."""
        yield from super().rules()
        yield from at_least(self, 0, "end_lr_factor")


@config_dataclass
class CosineConfig(_DecayConfig):
    """Cosine decay from `optimizer.lr` to `end_lr_factor * optimizer.lr` in half a period."""

    name: str = "cosine"
    """Name of the schedule, set by the selected option."""


@config_dataclass
class LinearConfig(_DecayConfig):
    """Linear decay from `optimizer.lr` to `end_lr_factor * optimizer.lr`."""

    name: str = "linear"
    """Name of the schedule, set by the selected option."""


@config_dataclass
class ExponentialConfig(_DecayConfig):
    """Exponential decay from `optimizer.lr` to `end_lr_factor * optimizer.lr`."""

    name: str = "exponential"
    """Name of the schedule, set by the selected option."""

    def rules(self) -> Iterator[Problem]:
        """Check that `end_lr_factor` is not 0, which an exponential decay never reaches."""
        yield from super().rules()
        if self.end_lr_factor == 0:
            given = {"end_lr_factor": self.end_lr_factor}
            yield Problem(given, "an exponential decay never reaches 0", "Set {end_lr_factor} above 0, such as 0.1.")
