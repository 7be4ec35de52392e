"""What makes the points of a sweep differ."""

from __future__ import annotations

from collections.abc import Sequence


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
