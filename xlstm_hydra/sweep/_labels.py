"""What makes the points of a sweep differ, in tables and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xlstm_hydra.hydra import Point, by_job, common, differing, jobs_with
from xlstm_hydra.problems import ConfigError, Problem

SUBDIR = "hydra.sweep.subdir"
"""Key of the folder of a job, which is its number."""

FEW = 4
"""So many numbers of jobs are listed."""


def swept(points: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return the same as values by their keys."""
    return [{key_of(text): text.partition("=")[2] for text in point} for point in differing(points)]


def key_of(override: str) -> str:
    """Return the key that an override changes, without what stands before it for adding or deleting."""
    return override.lstrip("+~").partition("=")[0]


def job_number(overrides: Sequence[str], counted: int) -> int:
    """Return the number of a job in the record of its sweep: that of its folder if the overrides set one, else the one
    that Hydra has counted."""
    given = [text.partition("=")[2] for text in overrides if text.startswith(f"{SUBDIR}=")]
    return int(given[-1]) if given and given[-1].isdecimal() else counted


def refuse_points(points: Sequence[Point], found: Mapping[int, Sequence[Problem]]) -> ConfigError:
    """Return an error that says why no job was started: in one line if all points have one problem, else in a table."""
    problems = by_job([point.overrides for point in points], found)
    if len(problems) == 1 and len(found) == len(points):
        return ConfigError(problems)
    skip = "; hydra.sweeper.on_invalid=skip leaves them out" if len(found) < len(points) else ""
    fix = f"no job was started{skip}"
    return ConfigError([replace(Problem.about("", invalid_table(points, found, fix)), has_lines=True)])


def invalid_table(points: Sequence[Point], found: Mapping[int, Sequence[Problem]], what: str) -> str:
    """A table of what is wrong, each thing once with the jobs that have it.

    Args:
        points: all of them.
        found: by the numbers of those that have problems.
        what: becomes of them.
    """
    from xlstm_hydra._table import table  # 30 ms

    own = differing([point.overrides for point in points])
    rows = [("job", "overrides", "reason")]
    for text, numbers in jobs_with(found).items():
        which = ", ".join(map(str, numbers)) if len(numbers) <= FEW else f"{len(numbers)} of {len(points)}"
        which = "all" if len(numbers) == len(points) else which
        rows.append((which, " ".join(common(own, numbers)), text))
    lines = table([(f"  {first}", *others) for first, *others in rows], left=range(3))
    return "\n".join([f"{len(found)} of {len(points)} points are invalid: {what}", *lines])
