"""Layouts as text: the best of a search, and the changes with which a run fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xlstm_hydra._table import table

from ._changes import Change
from ._search import Search, layout_overrides
from ._units import gib, in_bytes, in_ms, milliseconds


def search_report(found: Search) -> str:
    """The best layouts, each with what selects it."""
    tried = (
        f"{found.tried:,} layouts of {found.num_devices} x {found.device.name}, {len(found.refused):,} more are invalid"
    )
    fit = f"{len(found.fitting):,} fit in {in_bytes(found.limit)}"
    head = ("", "GiB", "ms", "bound by", "typed instead of the layout")
    rows = [
        (
            str(number),
            gib(plan.memory.total),
            "" if plan.time is None else milliseconds(plan.time.seconds),
            "" if plan.time is None else plan.time.bound_by,
            " ".join(layout_overrides(plan.run, found.run)) or "what is the default",
        )
        for number, plan in enumerate(found.best, 1)
    ]
    lines = [f"{tried}; {fit}"]
    if rows:
        lines += [f"the fastest {len(rows)}:", *table([head, *rows], left=(3, 4))]
    return "\n".join(lines)


def changes_report(changes: Sequence[Change]) -> Iterator[str]:
    """What to type behind what was typed, so that the run fits."""
    if not changes:
        return
    yield "it fits with one of:"
    rows = []
    for change in changes:
        time = change.cost.time
        speed = "" if time is None else f"{in_ms(time.seconds)} a step"
        rows.append((f"  {' '.join(change.overrides)}", in_bytes(change.needed), speed))
    yield from table(rows, left=(0,))
