"""The plans of a sweep side by side: a table, the same as CSV and JSON, and a plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xlstm_hydra._printable import printable
from xlstm_hydra._table import gib, in_ms, table
from xlstm_hydra.formats import parse
from xlstm_hydra.hydra import differing
from xlstm_hydra.plan import MEMORY_KINDS, PLAN_FILE
from xlstm_hydra.runs import open_new, replace_file

from ._jobs import job_folder
from ._outcomes import Outcome
from ._plots import Bar, plot_plans

HEAD = (
    *("job", "overrides", "params", "grads", "optim", "kept", "gathered", "logits", "working", "batch", "total"),
    *("headroom", "step", "tokens/s", "bound by", "verdict"),
)
"""The first line of the table, with short names of the kinds of memory."""

FITS, TOO_LARGE, INVALID, FAILED = "fits", "does not fit", "invalid", "failed"

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """The plan of one job."""

    job: int
    overrides: str
    """Those that not all jobs have."""
    verdict: str
    """fits, does not fit, invalid, or failed."""
    reason: str = ""
    """The rules that an invalid config breaks, or the error of a job that failed."""
    memory: dict[str, int] | None = None
    """Bytes on each device, by kind."""
    total: int | None = None
    """All of them."""
    headroom: int | None = None
    """Bytes of a device that stay free; negative where it does not fit."""
    device: str | None = None
    device_memory: int | None = None
    """Bytes that a program can use of a device."""
    num_devices: int | None = None
    step_seconds: float | None = None
    """The lower bound of the time of a step."""
    tokens_per_second: float | None = None
    """The upper bound of the tokens of all devices."""
    bound_by: str | None = None
    """What the bounds come from: compute, memory or network."""


def compare_plans(folder: Path, plans: Sequence[Outcome]) -> bool:
    """Print the plans of a sweep as one table, and leave it in the folder of the sweep, as CSV, as JSON and as a plot.

    Args:
        folder: that of the sweep.
        plans: the outcomes of the jobs that were to make plans.

    Returns:
        True if one of them fits.
    """
    rows = list(_rows(folder, plans))
    print("", *_lines(rows), sep="\n")
    _write_csv(rows, folder / "plans.csv")
    replace_file(folder / "plans.json", json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    written = ["plans.csv", "plans.json", *plot_plans(folder, list(MEMORY_KINDS.values()), list(map(_bar, rows)))]
    print(f"written: {', '.join(written)} in {folder}")
    return any(row.verdict == FITS for row in rows)


def _rows(folder: Path, plans: Sequence[Outcome]) -> Iterator[Row]:
    for one, own in zip(plans, differing([one.overrides for one in plans]), strict=True):
        overrides, file = " ".join(own), job_folder(folder, one) / PLAN_FILE
        try:
            yield _row(one.job, overrides, parse(file.read_bytes(), "a plan", fix=""))
        except OSError:
            yield Row(one.job, overrides, FAILED, one.reason or one.status)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            yield Row(one.job, overrides, FAILED, f"{file} cannot be read: {error}")


def _row(job: int, overrides: str, content: dict[str, Any]) -> Row:
    if "problems" in content:
        return Row(job, overrides, INVALID, "; ".join(content["problems"]))
    memory, time = content["memory"], content["time"]
    row = Row(
        job,
        overrides,
        FITS if content["fits"] else TOO_LARGE,
        memory={kind: memory[kind] for kind in MEMORY_KINDS},
        total=memory["total"],
        headroom=content["headroom"],
        device=content["device"]["name"],
        device_memory=content["device"]["memory_bytes"],
        num_devices=content["num_devices"],
        step_seconds=None if time is None else time["seconds"],
        tokens_per_second=None if time is None else time["tokens_per_second"],
        bound_by=None if time is None else time["bound_by"],
    )
    numbers = [*(row.memory or {}).values(), row.total, row.headroom, row.device_memory, row.num_devices]
    numbers += [] if time is None else [row.step_seconds, row.tokens_per_second]
    if not all(type(number) in (int, float) for number in numbers):
        raise TypeError("expected numbers for memory, devices and time")
    if not all(isinstance(text, str) for text in (row.device, "" if time is None else row.bound_by)):
        raise TypeError("expected text for device.name and time.bound_by")
    return row


# ---- text


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table, and under it why some have no figures."""
    yield f"memory of a device in GiB{_devices(rows)}:"
    yield from table(
        [HEAD, *map(_cells, rows)], left=[HEAD.index(name) for name in ("overrides", "bound by", "verdict")]
    )
    yield from (printable(f"job {row.job} {_ENDS[row.verdict]}: {row.reason}") for row in rows if row.reason)


_ENDS = {INVALID: "is invalid", FAILED: "failed"}


def _cells(row: Row) -> tuple[str, ...]:
    memory = [""] * (len(MEMORY_KINDS) + 2)
    if row.memory is not None:
        free = row.headroom or 0
        memory = [*map(gib, row.memory.values()), gib(row.total or 0), f"{'-' if free < 0 else ''}{gib(abs(free))}"]
    step = "" if row.step_seconds is None else in_ms(row.step_seconds)
    rate = "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    return (str(row.job), row.overrides, *memory, step, rate, row.bound_by or "", row.verdict)


def _devices(rows: Sequence[Row]) -> str:
    kinds = dict.fromkeys((row.device, row.device_memory) for row in rows if row.device_memory is not None)
    return printable(f", {' or '.join(f'{name} with {gib(size)}' for name, size in kinds)}") if kinds else ""


def _write_csv(rows: Sequence[Row], file: Path) -> None:
    sizes = [f"{kind}_bytes" for kind in (*MEMORY_KINDS, "total", "headroom", "device_memory")]
    names = ["job", "overrides", "verdict", "reason", "num_devices", "device", *sizes]
    names += ["step_seconds", "tokens_per_second", "bound_by"]
    with open_new(file, newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        for row in rows:
            flat = asdict(row) | (row.memory or {})
            del flat["memory"]
            writer.writerow({name: flat.get(name.removesuffix("_bytes")) for name in names})


def _bar(row: Row) -> Bar:
    limit = None if row.device_memory is None else row.device_memory / GIB
    sizes = [size / GIB for size in (row.memory or {}).values()]
    return Bar(row.overrides or f"job {row.job}", sizes, limit, row.verdict)
