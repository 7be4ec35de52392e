"""What the jobs of a sweep have compiled, and what they have shared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._strict_json import Damaged, read_object


def tell_programs(folders: Iterable[Path]) -> str | None:
    """How many of the programs of all jobs came from the cache. None where no training has ended.

    Args:
        folders: of the jobs.
    """
    found = [measured for folder in folders if (measured := _measured(folder / "plan.json"))]
    if not found:
        return None
    total, cached = (sum(each[name] for each in found) for name in ("programs", "programs_from_cache"))
    seconds, idle = sum(each["compile_seconds"] for each in found), sum(not each["programs"] for each in found)
    text = f"compiled: {total - cached} of {total} programs, {seconds:.1f} s in all"
    if cached:
        text += f"; {cached} came from the cache ({100 * cached / total:.0f}%)"
    return f"{text}; {idle} {'jobs' if idle > 1 else 'job'} ran those of the job before" if idle else text


def _measured(file: Path) -> Mapping[str, Any] | None:
    """What a run has measured, in its `plan.json`; None where it has not ended, or was of a version before this."""
    try:
        measured = read_object(file.read_bytes(), "a plan").get("measured")
    except (OSError, Damaged):
        return None
    names = ("programs", "programs_from_cache", "compile_seconds")
    is_whole = isinstance(measured, dict) and all(type(measured.get(name)) in (int, float) for name in names)
    return measured if is_whole else None
