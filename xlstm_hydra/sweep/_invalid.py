"""The points of a sweep that are not launched, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xlstm_hydra.hydra import Point, by_job, jobs_with
from xlstm_hydra.problems import ConfigError, Problem

FEW = 4
"""So many numbers of jobs are listed."""


def refuse(points: Sequence[Point], found: Mapping[int, Sequence[Problem]]) -> ConfigError:
    """Why no job was started: in a line where all have one thing wrong, else in a table."""
    problems = by_job([point.overrides for point in points], found)
    if len(problems) == 1 and len(found) == len(points):
        return ConfigError(problems)
    skip = "; hydra.sweeper.on_invalid=skip leaves them out" if len(found) < len(points) else ""
    fix = f"no job was started{skip}"
    return ConfigError([replace(Problem.about("", told(points, found, fix)), has_lines=True)])


def told(points: Sequence[Point], found: Mapping[int, Sequence[Problem]], what: str) -> str:
    """A table of what is wrong, each thing once with the jobs that have it.

    Args:
        points: all of them.
        found: by the numbers of those that have problems.
        what: becomes of them.
    """
    from xlstm_hydra._table import table  # 30 ms

    given = [point.overrides for point in points]
    shared = set.intersection(*map(set, given))
    rows = [("job", "overrides", "reason")]
    for text, numbers in jobs_with(found).items():
        common = set.intersection(*(set(given[number]) for number in numbers)) - shared
        which = ", ".join(map(str, numbers)) if len(numbers) <= FEW else f"{len(numbers)} of {len(points)}"
        which = "all" if len(numbers) == len(points) else which
        rows.append((which, " ".join(item for item in given[numbers[0]] if item in common), text))
    lines = table([(f"  {first}", *others) for first, *others in rows], left=range(3))
    return "\n".join([f"{len(found)} of {len(points)} points are invalid: {what}", *lines])
