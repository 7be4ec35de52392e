"""Reading `metrics.csv`, whose lines may be damaged: each that is gets named, and the others are used."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from xlstm_hydra.problems import show

METRICS_FILE = "metrics.csv"
"""In the folder of a run."""

MOST_REPORTED = 5
"""Damaged lines that are reported one by one."""

_STEP = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]{1,4})?|nan|[-+]?inf", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass
class MetricsFile:
    """What stands in a file of metrics."""

    columns: list[str] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)
    """The text of each value by its column, without those that are empty. `step` is in each."""

    faults: list[str] = field(default_factory=list)
    """What is wrong with each damaged line, behind its number."""

    cut: str | None = None
    """Note of a last line that was cut off, as by a kill."""

    def reports(self) -> list[str]:
        """The faults for a user, and how many more there are than are listed."""
        more = len(self.faults) - MOST_REPORTED
        return [*self.faults[:MOST_REPORTED], *([f"{more} more lines are damaged"] if more > 0 else [])]


def read_metrics_file(file: Path) -> MetricsFile:
    """Read a file of metrics; one that is not there has none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return MetricsFile()
    *lines, rest = data.split(b"\n")
    found = MetricsFile(cut=f"line {len(lines) + 1} is cut off, as by a kill" if rest else None)
    for number, line in enumerate(lines, 1):
        try:
            _take(found, number, line.removesuffix(b"\r").decode("utf-8").split(","))
        except UnicodeDecodeError as error:
            found.faults.append(f"line {number}: not UTF-8: {error.reason} at byte {error.start}")
        except ValueError as error:
            found.faults.append(f"line {number}: {error}")
    return found


def _take(found: MetricsFile, number: int, values: list[str]) -> None:
    """Take a line.

    Raises:
        ValueError: it is damaged.
    """
    if number == 1:
        if "step" not in values or len({*values}) < len(values) or not all(map(_NAME.fullmatch, values)):
            raise ValueError(f"expected the names of columns, got {show(','.join(values))}")
        found.columns = values
    elif found.columns:
        found.rows.append(_row(found.columns, values))


def _row(columns: list[str], values: list[str]) -> dict[str, str]:
    if len(values) != len(columns):
        raise ValueError(f"expected {len(columns)} values, got {len(values)}")
    row = {name: value for name, value in zip(columns, values, strict=True) if value}
    if not _STEP.fullmatch(row.get("step", "")):
        raise ValueError(f"step: expected a whole number, got {show(row.get('step'))}")
    for name, value in row.items():
        if not _NUMBER.fullmatch(value):
            raise ValueError(f"{name}: expected a number, got {show(value)}")
    return row
