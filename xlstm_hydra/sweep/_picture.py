"""A picture of the results of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ._outcome import Outcome


def draw(folder: Path, record: Sequence[Outcome]) -> list[str]:
    """Draw it. Returns the names of the files."""
    return []
