"""Read `metrics.csv`. Damaged lines are reported and skipped."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from xlstm_hydra.problems import show

METRICS_FILE = "metrics.csv"
"""Name of the metrics file in a run folder."""

MOST_REPORTED = 5
"""Maximum number of damaged lines that are reported individually."""

_STEP = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]{1,4})?|nan|[-+]?inf", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass
class MetricsFile:
    """Content of a metrics file."""

    columns: list[str] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)
    """For each row, the non-empty values by column, as text. Every row has a value for `step`."""

    faults: list[str] = field(default_factory=list)
    """The line number and the problem of each damaged line."""

    cut: str | None = None
    """Note about an incomplete last line, for example after the run was killed. None: the last line is complete."""

    def reports(self) -> list[str]:
        """Return the first faults, followed by the number of remaining faults."""
        more = len(self.faults) - MOST_REPORTED
        return [*self.faults[:MOST_REPORTED], *([f"{more} more lines are damaged"] if more > 0 else [])]


def read_metrics_file(file: Path) -> MetricsFile:
    """Read a metrics file. A missing file is read as a file without rows.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return MetricsFile()
    *lines, rest = data.split(b"\n")
    found = MetricsFile(cut=f"line {len(lines) + 1} is cut off (was the run killed?)" if rest else None)
    for number, line in enumerate(lines, 1):
        try:
            _take(found, number, line.removesuffix(b"\r").decode("utf-8").split(","))
        except UnicodeDecodeError as error:
            found.faults.append(f"line {number}: not UTF-8: {error.reason} at byte {error.start}")
        except ValueError as error:
            found.faults.append(f"line {number}: {error}")
    return found


def _take(found: MetricsFile, number: int, values: list[str]) -> None:
    """Add the values of a line to `found`.

    Raises:
        ValueError: the line is damaged.
    """
    if number == 1:
        if "step" not in values or len({*values}) < len(values) or not all(map(_NAME.fullmatch, values)):
            raise ValueError(f"expected column names, got {show(','.join(values))}")
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
