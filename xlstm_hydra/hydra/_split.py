"""Split the overrides of a sweep into points, one for each combination of values.

Points are counted before they are created, so that a sweep that is too large is rejected immediately.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import ROUND_CEILING, Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep, Sweep

from xlstm_hydra.problems import ConfigError, Problem

from ._omegaconf import REFUSED
from ._schemas import SweeperConfig

MAX_JOBS, NUM_SAMPLES = "hydra.sweeper.max_jobs", "hydra.sweeper.num_samples"


DIGITS = 6
"""Significant digits of values drawn from intervals."""


_COUNTED = 100_000
"""Length up to which the values of a range are counted by iteration, which takes up to 10 ms."""


def num_values(override: Override) -> int:
    """Return the number of values of a sweep override; 1 for intervals and for overrides with a single value."""
    found = override.value()
    if isinstance(found, RangeSweep):
        return _length(found)
    if isinstance(found, ChoiceSweep):
        return len(found.list)
    if isinstance(found, Glob) and override.config_loader is not None:
        return sum(1 for _ in override.sweep_string_iterator())
    return 1


def is_countable(values: RangeSweep) -> bool:
    """True if a range has finite bounds, a finite step, and a step other than 0."""
    numbers = (values.start, values.stop, values.step)
    return values.step != 0 and all(isinstance(one, int) or (one is not None and math.isfinite(one)) for one in numbers)


def _length(values: RangeSweep) -> int:
    start, stop, step = values.start, values.stop, values.step
    if start is None or stop is None or not is_countable(values):
        return 1  # such a range is rejected by another rule
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return max(0, -((start - stop) // step))
    length = max(0, int(((Decimal(stop) - Decimal(start)) / Decimal(step)).to_integral_value(ROUND_CEILING)))
    # Rounding errors add up when the range is iterated, which may yield one more value.
    return length if length > _COUNTED else sum(1 for _ in values.range())


def check_size(overrides: Iterable[Override], num_samples: int | None, max_jobs: int | None) -> None:
    """Check the number of jobs of a sweep.

    Args:
        overrides: sweep overrides, with at most one per key.
        num_samples: number of values drawn from intervals. None: there are no intervals.
        max_jobs: maximum number of jobs. None: no limit.

    Raises:
        ConfigError: the sweep has more than `max_jobs` jobs.
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
        one_for = f", as set by {NUM_SAMPLES}"
    detail = f" = {of_each}" if len(factors) > 1 else one_for
    total = f"{_shown(number)} jobs{detail if factors else ''}"
    fix = f"Sweep fewer values, or increase {MAX_JOBS} (null: no limit)."
    raise ConfigError([Problem({MAX_JOBS: max_jobs}, f"the sweep has {total}", fix)])


def _shown(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"{Decimal(number):.2e}".replace("+", "")


def typed_limit(overrides: Iterable[Override]) -> int | None:
    """Return the value of `hydra.sweeper.max_jobs` on the command line, or the default if it is not set."""
    typed: list[Any] = [override.value() for override in overrides if override.key_or_group == MAX_JOBS]
    is_limit = bool(typed) and (typed[-1] is None or type(typed[-1]) is int)
    return typed[-1] if is_limit else SweeperConfig.max_jobs


def check_basic_sweep(texts: Sequence[str]) -> None:
    """Apply the default job limit to `hydra/sweeper=basic`, Hydra's sweeper, which creates all jobs before our code
    runs.

    Args:
        texts: command-line overrides.

    Raises:
        ConfigError: the sweep has more jobs than the limit.
    """
    if "hydra/sweeper=basic" not in texts:
        return
    try:
        overrides = OverridesParser.create().parse_overrides(list(texts))
    except REFUSED:
        return  # Hydra rejects the command line before it creates jobs
    try:
        check_size({one.get_key_element(): one for one in overrides}.values(), None, SweeperConfig.max_jobs)
    except ConfigError as error:
        rule = error.problems[0].rule
        fix = f"Sweep fewer values, or use hydra/sweeper=xlstm, whose limit is set by {MAX_JOBS}."
        text = f"{rule}; at most {SweeperConfig.max_jobs} are allowed"
        raise ConfigError([Problem.about("hydra/sweeper=basic", text, fix)]) from None


def split(
    overrides: Sequence[Override], num_samples: int | None = None, seed: int = 0, max_jobs: int | None = None
) -> list[list[str]]:
    """Return the overrides of each job: all combinations of values, in the order of Hydra's basic sweeper.

    If a key occurs several times, its last override is used.

    Args:
        overrides: sweep overrides.
        num_samples: number of samples to draw from the intervals. Each sample is combined with all combinations of the
            other values.
        seed: seed of samples and shuffles. A larger `num_samples` appends samples and does not change the first ones.
        max_jobs: maximum number of jobs. None: no limit.

    Raises:
        ConfigError: an interval is invalid, only one of intervals and `num_samples` is given, a key has no values, or
            there are more than `max_jobs` jobs.
    """
    last = {override.get_key_element(): override for override in overrides}
    intervals = {key: override for key, override in last.items() if override.is_interval_sweep()}
    if problems := [*_interval_rules(list(intervals.values()), num_samples), *_value_rules(last.values())]:
        raise ConfigError(problems)
    check_size(last.values(), num_samples if intervals else None, max_jobs)
    with _seeded(seed):
        values = {key: list(_texts(key, override)) for key, override in last.items() if key not in intervals}
    if empty := [key for key, texts in values.items() if not texts]:
        raise ConfigError(_no_values(last[key]) for key in empty)
    points = []
    for number in range(num_samples if intervals and num_samples else 1):
        drawn = {key: [f"{key}={_draw(_interval(one), f'{seed} {key} {number}')}"] for key, one in intervals.items()}
        choices = [drawn.get(key) or values[key] for key in last]
        points += [list(point) for point in itertools.product(*choices)]
    return points


def first_point(overrides: Sequence[Override]) -> list[str]:
    """Return the overrides of one job, with the first value of each key, or a random value of an interval.

    Raises:
        ConfigError: a key has no values, or an interval is invalid.
    """
    last = {override.get_key_element(): override for override in overrides}
    intervals = {str(one.input_line): _interval(one) for one in last.values() if one.is_interval_sweep()}
    problems = [problem for text, interval in intervals.items() for problem in _bound_rules(text, interval)]
    if problems := [*problems, *_value_rules(last.values())]:
        raise ConfigError(problems)
    if empty := [override for override in last.values() if num_values(override) == 0]:
        raise ConfigError(map(_no_values, empty))
    return [_first_text(key, override) for key, override in last.items()]


def _first_text(key: str, override: Override) -> str:
    found = override.value()
    if isinstance(found, IntervalSweep):
        return f"{key}={_draw(found, key)}"
    if isinstance(found, RangeSweep):
        return f"{key}={found.start}"  # even for a shuffled range, because Hydra would list all of its values
    return next(_texts(key, override))


def _texts(key: str, override: Override) -> Iterator[str]:
    """Yield one override with a single value for each value of a sweep override."""
    if override.is_sweep_override():
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())
    elif override.type.name == "EXTEND_LIST":  # Hydra 1.4's key=extend_list(...), whose value omits extend_list
        yield str(override.input_line)
    else:
        yield f"{key}={override.get_value_element_as_str()}"


def _value_rules(overrides: Iterable[Override]) -> Iterator[Problem]:
    for override in overrides:
        found, text = override.value(), str(override.input_line)
        if isinstance(found, RangeSweep) and found.step == 0:
            yield Problem.about(text, "the step of a range must not be 0")
        elif isinstance(found, RangeSweep) and not is_countable(found):
            yield Problem.about(text, "start, stop and step of a range must be finite")
        if isinstance(found, ChoiceSweep) and any(isinstance(item, Sweep) for item in found.list):
            yield Problem.about(text, "sweeps cannot be nested", "Write all values in one list: 1,2,3.")


def _no_values(override: Override) -> Problem:
    """Return the `Problem` for a sweep override without values."""
    found, text, key = override.value(), str(override.input_line), override.key_or_group
    if isinstance(found, Glob):
        assert override.config_loader is not None, "without it, there would have been an error before"
        options = sorted(override.config_loader.get_group_options(key))
        if not options:
            return Problem.about(text, f"glob only applies to config groups, and {key} is not a group")
        return Problem.about(text, f"does not match any of {', '.join(options)}")
    of_range = "The stop of a range is excluded: range(1,3) is 1 and 2."
    return Problem.about(
        text, "has no values", of_range if isinstance(found, RangeSweep) else "Give at least one value."
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's global random number generator, which `shuffle(...)` uses, inside the `with` block."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


# ---- intervals


def _interval(override: Override) -> IntervalSweep:
    found = override.value()
    assert isinstance(found, IntervalSweep)
    return found


def _interval_rules(overrides: Sequence[Override], num_samples: int | None) -> Iterator[Problem]:
    if num_samples is not None and not overrides:
        fix = "Sweep a key over an interval, such as optimizer.lr=interval(1e-4,1e-3), or remove num_samples."
        yield Problem({NUM_SAMPLES: num_samples}, "there is no interval to draw values from", fix)
    for override in overrides:
        text, interval = str(override.input_line), _interval(override)
        if num_samples is None:
            fix = f"Set {NUM_SAMPLES}=20 to draw random values, or search with hydra/sweeper=optuna."
            yield Problem.about(text, "an interval has infinitely many values", fix)
        else:
            yield from _bound_rules(text, interval)


def _bound_rules(text: str, interval: IntervalSweep) -> Iterator[Problem]:
    if not _start(interval) < _end(interval):
        yield Problem.about(text, "the end of an interval must be greater than its start")
    elif not math.isfinite(_start(interval)) or not math.isfinite(_end(interval)):
        yield Problem.about(text, "the start and the end of an interval must be finite")
    elif "log" in interval.tags and _start(interval) <= 0:
        yield Problem.about(text, "the start of a logarithmic interval must be greater than 0")
    elif unknown := interval.tags - {"log"}:
        yield Problem.about(text, f"no such tag: {', '.join(sorted(unknown))}", "Known: log.")


def _start(interval: IntervalSweep) -> float:
    assert interval.start is not None
    return interval.start


def _end(interval: IntervalSweep) -> float:
    assert interval.end is not None
    return interval.end


def _draw(interval: IntervalSweep, seed: str) -> str:
    """Draw a value from an interval: uniformly, or log-uniformly if tagged `log`. Integer intervals include the end."""
    start, end, share = _start(interval), _end(interval), random.Random(seed).random()
    whole = isinstance(start, int) and isinstance(end, int)
    low, high = (start - 0.5, end + 0.5) if whole else (start, end)
    is_log = "log" in interval.tags
    value = math.exp(math.log(low) + share * math.log(high / low)) if is_log else low + share * (high - low)
    if whole:
        return str(min(max(round(value), int(start)), int(end)))
    short = f"{value:.{DIGITS}g}"
    return short if start <= float(short) <= end else repr(min(max(value, start), end))
