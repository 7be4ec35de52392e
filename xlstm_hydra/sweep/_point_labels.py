"""What makes the points of a sweep differ."""

from __future__ import annotations

from collections.abc import Sequence

SUBDIR = "hydra.sweep.subdir"
"""Key of the folder of a job, which is its number."""


def differing(points: Sequence[Sequence[str]]) -> list[list[str]]:
    """The overrides of each point that not all points have."""
    shared = set.intersection(*map(set, points)) if points else set()
    return [[text for text in point if text not in shared] for point in points]


def swept(points: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """The same as values by their keys."""
    return [{key_of(text): text.partition("=")[2] for text in point} for point in differing(points)]


def key_of(override: str) -> str:
    """The key that an override changes, without what stands before it for adding or deleting."""
    return override.lstrip("+~").partition("=")[0]


def job_number(overrides: Sequence[str], counted: int) -> int:
    """The number of a job in the record of its sweep: that of its folder where it was given one, else the one that
    Hydra has counted."""
    given = [text.partition("=")[2] for text in overrides if text.startswith(f"{SUBDIR}=")]
    return int(given[-1]) if given and given[-1].isdecimal() else counted
