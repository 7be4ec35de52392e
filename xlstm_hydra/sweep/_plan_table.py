"""The plans of a sweep side by side: a table, the same as CSV and JSON, and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xlstm_hydra._colours import COLOURS
from xlstm_hydra._printable import printable
from xlstm_hydra._table import table
from xlstm_hydra.formats import parse
from xlstm_hydra.plan import FORMAT, MEMORY_KINDS, PLAN_FILE, VERSION, gib, in_ms
from xlstm_hydra.problems import ConfigError
from xlstm_hydra.runs import open_new, replace_file

HEAD = (
    *("job", "overrides", "params", "grads", "optim", "kept", "gathered", "logits", "working", "batch", "total"),
    *("headroom", "step", "tokens/s", "bound by", "verdict"),
)
"""The first line of the table, with short names of the kinds of memory."""

FITS, TOO_LARGE, INVALID, FAILED = "fits", "does not fit", "invalid", "failed"

GIB = 2**30


class Job(NamedTuple):
    """A job of a sweep that was to make a plan."""

    number: int
    overrides: Sequence[str]
    folder: Path
    error: str = ""
    """Why it made none."""


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


def keep_refusal(error: ConfigError, folder: Path) -> None:
    """Leave in a job's folder why its config has no plan."""
    content = {"format": FORMAT, "version": VERSION, "problems": [str(problem) for problem in error.problems]}
    replace_file(folder / PLAN_FILE, json.dumps(content, indent=2))


def compare_plans(jobs: Sequence[Job], folder: Path) -> bool:
    """Print the plans of the jobs of a sweep as one table, and leave that in the folder of the sweep, as CSV, as JSON
    and as a picture.

    Args:
        jobs: all of them.
        folder: that of the sweep.

    Returns:
        Whether one of them fits.
    """
    rows = list(_rows(jobs))
    print("", *_lines(rows), sep="\n")
    _write_csv(rows, folder / "plans.csv")
    replace_file(folder / "plans.json", json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    written = ["plans.csv", "plans.json", *_draw(rows, folder)]
    print(f"written: {', '.join(written)} in {folder}")
    return any(row.verdict == FITS for row in rows)


def _rows(jobs: Sequence[Job]) -> Iterator[Row]:
    shared = set.intersection(*(set(job.overrides) for job in jobs))
    for job in jobs:
        own = " ".join(text for text in job.overrides if text not in shared)
        file = job.folder / PLAN_FILE
        try:
            yield _row(job.number, own, parse(file.read_bytes(), "a plan", fix=""))
        except OSError:
            yield Row(job.number, own, FAILED, job.error or f"no plan in {file}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            yield Row(job.number, own, FAILED, f"{file} cannot be read: {error}")


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


# ---- picture


def _draw(rows: Sequence[Row], folder: Path) -> list[str]:
    """Memory as stacked bars against the devices' line. Returns the names of the files."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs pip install 'xlstm-hydra[plots]'")
        return []
    if all(row.total is None for row in rows):
        return []
    figure = Figure(figsize=(10, 1.8 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places, ends = range(len(rows)), [0.0] * len(rows)
    for kind, colour in zip(MEMORY_KINDS, COLOURS, strict=True):
        sizes = [(row.memory or {}).get(kind, 0) / GIB for row in rows]
        axes.barh(places, sizes, left=ends, color=colour, label=MEMORY_KINDS[kind])
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for place, end, row in zip(places, ends, rows, strict=True):
        axes.text(end, place, f" {row.verdict if row.total is None else f'{end:.1f}, {row.verdict}'}", va="center")
        if row.device_memory is not None:
            axes.vlines(row.device_memory / GIB, place - 0.5, place + 0.5, color="black")
    axes.set_yticks(places, [row.overrides or f"job {row.job}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * max(*ends, *((row.device_memory or 0) / GIB for row in rows)))
    axes.set_xlabel("GiB on a device; the line is what it has")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    names = ["plans.png", "plans.svg"]
    for name in names:
        (folder / name).unlink(missing_ok=True)  # a link is not followed
        figure.savefig(folder / name, dpi=150)
    return names
