"""The number of jobs of a sweep, computed without making them: a range of any length costs nothing here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep

from xlstm_hydra.problems import ConfigError, Problem

from ._refusals import REFUSED
from ._sweeper import SweeperConfig

MAX_JOBS, NUM_SAMPLES = "hydra.sweeper.max_jobs", "hydra.sweeper.num_samples"


def num_values(override: Override) -> int:
    """The number of values that an override takes in turn."""
    found = override.value()
    if isinstance(found, RangeSweep):
        return _length(found)
    if isinstance(found, ChoiceSweep):
        return len(found.list)
    if isinstance(found, Glob) and override.config_loader is not None:
        return sum(1 for _ in override.sweep_string_iterator())
    return 1


def is_countable(values: RangeSweep) -> bool:
    """True if a range has an end."""
    numbers = (values.start, values.stop, values.step)
    return values.step != 0 and all(isinstance(one, int) or (one is not None and math.isfinite(one)) for one in numbers)


def _length(values: RangeSweep) -> int:
    start, stop, step = values.start, values.stop, values.step
    if start is None or stop is None or not is_countable(values):
        return 1  # which is refused by a rule of its own
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return max(0, -((start - stop) // step))
    length = (Decimal(stop) - Decimal(start)) / Decimal(step)
    return max(0, int(length.to_integral_value(ROUND_CEILING)))


def check_size(overrides: Iterable[Override], num_samples: int | None, max_jobs: int | None) -> None:
    """Make sure that a sweep has no more jobs than are allowed.

    Args:
        overrides: one for each key.
        num_samples: the number of values drawn from intervals, if there are intervals.
        max_jobs: the limit; None: there is none.

    Raises:
        ConfigError: it has more.
    """
    counts = {override.get_key_element(): num_values(override) for override in overrides}
    factors = {key: count for key, count in counts.items() if count != 1}
    if num_samples is not None:
        factors[NUM_SAMPLES] = num_samples
    number = math.prod(factors.values())
    if max_jobs is None or number <= max_jobs:
        return
    of_each = " * ".join(f"{_shown(count)} ({key})" for key, count in factors.items())
    one_for = f", one for each value of {', '.join(factors)}"
    if [*factors] == [NUM_SAMPLES]:
        one_for = f", as many as {NUM_SAMPLES} draws"
    detail = f" = {of_each}" if len(factors) > 1 else one_for
    total = f"{_shown(number)} jobs{detail if factors else ''}"
    fix = f"Sweep fewer values, or set {MAX_JOBS} to a larger number (null: no limit)."
    raise ConfigError([Problem({MAX_JOBS: max_jobs}, f"the sweep has {total}", fix)])


def _shown(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"{Decimal(number):.2e}".replace("+", "")


def typed_limit(overrides: Iterable[Override]) -> int | None:
    """The limit that was typed, or the default."""
    typed: list[Any] = [override.value() for override in overrides if override.key_or_group == MAX_JOBS]
    is_limit = bool(typed) and (typed[-1] is None or type(typed[-1]) is int)
    return typed[-1] if is_limit else SweeperConfig.max_jobs


def check_basic_sweep(texts: Sequence[str]) -> None:
    """Apply the default limit to Hydra's own sweeper, which makes all jobs before any of our code sees them.

    Args:
        texts: the overrides that were typed.

    Raises:
        ConfigError: there are more jobs.
    """
    if "hydra/sweeper=basic" not in texts:
        return
    try:
        overrides = OverridesParser.create().parse_overrides(list(texts))
    except REFUSED:
        return  # Hydra refuses it before it makes jobs
    try:
        check_size({one.get_key_element(): one for one in overrides}.values(), None, SweeperConfig.max_jobs)
    except ConfigError as error:
        rule = error.problems[0].rule
        fix = f"Sweep fewer values, or use hydra/sweeper=xlstm, whose limit is {MAX_JOBS}."
        text = f"{rule}; at most {SweeperConfig.max_jobs} are allowed"
        raise ConfigError([Problem.about("hydra/sweeper=basic", text, fix)]) from None
