"""Plots of a sweep: loss curves, the best loss against each swept numeric key, and the memory of plans as bars."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xlstm_hydra._colours import COLOURS
from xlstm_hydra.runs import METRICS_FILE

from ._jobs import finite, job_folder, read_metrics, swept
from ._outcomes import COMPLETED, Outcome

MAX_LINES = len(COLOURS) - 1
"""Maximum number of lines with their own colour and label. Further lines are grey, which is the last colour."""

MAX_PANELS = 3
"""Maximum number of swept keys that get a panel."""

MAX_LABEL = 34
"""Maximum length of a label in characters. A longer label is replaced by the job number."""

SEED = "seed"
"""Suffix of the keys that hold random seeds. Values are averaged over these keys."""


class Curve(NamedTuple):
    """Loss curve of a job."""

    label: str
    steps: list[int]
    losses: list[float]
    is_whole: bool
    """True if the job is completed."""


class Line(NamedTuple):
    """Line in a panel: the best values of jobs that differ only in the key on the x-axis and in seeds, by the value of
    that key."""

    label: str
    best: dict[float, list[float]]


@dataclass(frozen=True)
class PlanRow:
    """Plan of one job, as a row of the table."""

    job: int
    overrides: str
    """Overrides that not all jobs share."""
    verdict: str
    """fits, does not fit, invalid, or failed."""
    reason: str = ""
    """Problems of an invalid config, or the error of a failed job."""
    memory: dict[str, int] | None = None
    """Bytes per device, by kind of memory."""
    total: int | None = None
    """Bytes per device, summed over the kinds of memory."""
    headroom: int | None = None
    """Free bytes per device; negative if the plan does not fit."""
    device: str | None = None
    device_memory: int | None = None
    """Bytes per device that are available to a program."""
    num_devices: int | None = None
    step_seconds: float | None = None
    """Lower bound on the step time, in seconds."""
    tokens_per_second: float | None = None
    """Upper bound on the total throughput of all devices."""
    bound_by: str | None = None
    """The limiting resource: compute, memory or network."""


def plot_results(folder: Path, ranked: Sequence[Outcome]) -> list[str]:
    """Plot the results of jobs, sorted from best to worst, to files in the sweep folder. Return the file names."""
    if not _has_matplotlib():
        return []
    points = [_numbers(point) for point in swept([one.overrides for one in ranked])]
    name, curves = curves_of(folder, ranked, points)
    panels = panels_of(ranked, points)
    count = bool(curves) + len(panels)
    if not count:
        return []
    figure = _new_figure(6.4 * count, 4.8)
    axes = iter(figure.subplots(1, count, squeeze=False)[0])
    if curves:
        _draw_curves(next(axes), name, curves)
    for key, lines in panels.items():
        _draw_panel(next(axes), key, next(one.metric for one in ranked if one.metric) or "", lines)
    return _save(figure, folder, "sweep")


def plot_plans(folder: Path, kinds: Sequence[str], plans: Sequence[PlanRow]) -> list[str]:
    """Plot plans to files in the sweep folder, as stacked bars with a line at the device memory. Return the file names.

    Args:
        folder: the sweep folder.
        kinds: the names of the kinds of memory.
        plans: one plan per job.
    """
    if not _has_matplotlib() or not any(plan.memory for plan in plans):
        return []
    figure = _new_figure(10, 1.8 + 0.4 * len(plans))
    axes = figure.add_subplot()
    sizes = [[size / 2**30 for size in (plan.memory or dict.fromkeys(kinds, 0)).values()] for plan in plans]
    limits = [None if plan.device_memory is None else plan.device_memory / 2**30 for plan in plans]
    ends = [0.0] * len(plans)
    for kind, colour, column in zip(kinds, COLOURS, zip(*sizes, strict=True), strict=True):
        axes.barh(range(len(plans)), column, left=ends, color=colour, label=kind)
        ends = [end + size for end, size in zip(ends, column, strict=True)]
    for row, (plan, end, limit) in enumerate(zip(plans, ends, limits, strict=True)):
        axes.text(end, row, f" {f'{end:.1f}, ' if plan.memory else ''}{plan.verdict}", va="center")
        if limit is not None:
            axes.vlines(limit, row - 0.5, row + 0.5, color="black")
    axes.set_yticks(range(len(plans)), [plan.overrides or f"job {plan.job}" for plan in plans])
    axes.set_ylim(len(plans) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * max(*ends, *(limit or 0.0 for limit in limits)))
    axes.set_xlabel("GiB per device; the black line marks the memory of the device")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return _save(figure, folder, "plans")


def _has_matplotlib() -> bool:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        print("no plot: matplotlib is not installed; pip install 'xlstm-hydra[plots]' installs it")
        return False
    return True


def _new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, folder: Path, name: str) -> list[str]:
    files = [f"{name}.png", f"{name}.svg"]
    for file in files:
        (folder / file).unlink(missing_ok=True)  # so that nothing is written through a link
        figure.savefig(folder / file, dpi=150)
    return files


# ---- what is drawn


def curves_of(folder: Path, ranked: Sequence[Outcome], points: Sequence[dict[str, Any]]) -> tuple[str, list[Curve]]:
    """Return the name of the plotted loss and one curve per job. The validation loss is plotted if any job measured it
    more than once, otherwise the training loss."""
    rows = [read_metrics(job_folder(folder, one) / METRICS_FILE) for one in ranked]
    taken = [sum(row.get("validation_loss") is not None for row in of_job) for of_job in rows]
    name = "validation_loss" if taken and max(taken) > 1 else "loss"
    curves = []
    for one, point, of_job in zip(ranked, points, rows, strict=True):
        pairs = [(row["step"], row[name]) for row in of_job if row.get(name) is not None]
        if pairs:
            steps, losses = (list(column) for column in zip(*pairs, strict=True))
            curves.append(Curve(_label(one, point, points), steps, losses, one.status == COMPLETED))
    return name, curves


def panels_of(ranked: Sequence[Outcome], points: Sequence[dict[str, Any]]) -> dict[str, list[Line]]:
    """Return the lines of one panel per swept numeric key. The lines show the best values of the completed jobs, with
    one line per combination of the other keys, except seeds."""
    known = [(one, point) for one, point in zip(ranked, points, strict=True) if one.status == COMPLETED]
    known = [(one.best, point) for one, point in known if one.best is not None]
    keys = list(dict.fromkeys(key for _, point in known for key in point if not key.endswith(SEED)))
    numeric = [key for key in keys if all(isinstance(point.get(key), float) for _, point in known)]
    numeric = [key for key in numeric if len({point[key] for _, point in known}) > 1]
    panels = {}
    for key in numeric[:MAX_PANELS]:
        lines: dict[str, dict[float, list[float]]] = {}
        for best, point in known:
            rest = {name: value for name, value in point.items() if name in keys and name != key}
            lines.setdefault(_text(rest, keys), {}).setdefault(point[key], []).append(best)
        panels[key] = [Line(label, dict(sorted(line.items()))) for label, line in lines.items()]
    return panels


def _numbers(point: dict[str, str]) -> dict[str, Any]:
    """Return a point with numeric values converted to floats."""
    return {key: value if (number := finite(value)) is None else number for key, value in point.items()}


def _label(one: Outcome, point: dict[str, Any], points: Iterable[dict[str, Any]]) -> str:
    text = _text(point, list(dict.fromkeys(key for other in points for key in other)))
    if not text or len(text) > MAX_LABEL:
        text = f"job {one.job}"
    return text if one.status == COMPLETED else f"{text} ({one.status})"


def _text(point: dict[str, Any], keys: Sequence[str]) -> str:
    """Return the values as text, such as `lr=0.001 parallel=dp`. Keys are shortened to their last part if that is
    unambiguous."""
    ends = [key.rpartition(".")[2] for key in keys]
    names = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
    return " ".join(f"{names[key]}={f'{v:g}' if isinstance(v, float) else v}" for key, v in point.items())


# ---- how it is drawn


def _draw_curves(axes: Any, name: str, curves: Sequence[Curve]) -> None:
    """Draw the curves from worst to best, so that the best are on top."""
    for rank, curve in reversed(list(enumerate(curves))):
        axes.plot(
            curve.steps,
            curve.losses,
            color=COLOURS[min(rank, MAX_LINES)],
            linewidth=1.6 if rank < MAX_LINES else 0.7,
            linestyle="-" if curve.is_whole else "--",
            marker="o" if len(curve.steps) == 1 else None,
        )
        if not curve.is_whole:
            axes.plot(curve.steps[-1:], curve.losses[-1:], "x", color=COLOURS[min(rank, MAX_LINES)])
    beginning, highest = max(curve.losses[0] for curve in curves), max(max(curve.losses) for curve in curves)
    lowest = min(min(curve.losses) for curve in curves)
    top = min(highest, lowest + 1.2 * (beginning - lowest)) if beginning > lowest else highest
    axes.set_ylim(lowest - 0.05 * (top - lowest) - 1e-9, top + 0.05 * (top - lowest) + 1e-9)
    named = curves[:MAX_LINES]
    _name_lines(axes, [(curve.label, curve.losses[-1]) for curve in named])
    grey = len(curves) - len(named)
    axes.set_xlabel(f"step{f' ({grey} more jobs in grey)' if grey else ''}")
    axes.set_ylabel(f"{name.replace('_', ' ')} (nats)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_panel(axes: Any, key: str, metric: str, lines: Sequence[Line]) -> None:
    is_few = len(lines) <= MAX_LINES
    for number, line in enumerate(lines):
        colour = COLOURS[number if is_few else -1]
        pairs = [(value, best) for value, found in line.best.items() for best in found]
        axes.plot(*zip(*pairs, strict=True), "o", color=colour, markersize=4)
        axes.plot(list(line.best), list(map(statistics.mean, line.best.values())), color=colour, linewidth=1.6)
    values = sorted({value for line in lines for value in line.best})
    if values[0] > 0 and values[-1] / values[0] >= 10:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(values) <= MAX_LINES:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    if is_few and len(lines) > 1:
        _name_lines(axes, [(line.label, statistics.mean(list(line.best.values())[-1])) for line in lines])
    axes.set_xlabel(key)
    axes.set_ylabel(f"best {metric.replace('_', ' ')}")
    axes.spines[["top", "right"]].set_visible(False)


def _name_lines(axes: Any, ends: Sequence[tuple[str, float]]) -> None:
    """Write the label of each line at its right end, in the colour of the line, without overlapping labels."""
    low, high = axes.get_ylim()
    gap = 0.05 * (high - low)
    order = sorted(range(len(ends)), key=lambda number: ends[number][1])
    heights, below = {}, -math.inf
    for number in order:
        below = heights[number] = max(min(max(ends[number][1], low), high), below + gap)
    above = high + gap
    for number in reversed(order):
        above = heights[number] = min(heights[number], above - gap)
    for number, (label, _) in enumerate(ends):
        axes.annotate(
            label,
            (1.01, heights[number]),
            xycoords=("axes fraction", "data"),
            color=COLOURS[number],
            va="center",
            fontsize="small",
            annotation_clip=False,
        )
