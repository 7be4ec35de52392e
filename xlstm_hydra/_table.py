"""Tables and numbers as text: sizes in bytes, times in ms, FLOPs in TFLOP."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from io import StringIO
from itertools import accumulate

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlstm_hydra._printable import printable, wrapped


def table(rows: Sequence[Sequence[str]], left: Collection[int]) -> Iterator[str]:
    """Yield the lines of a table. Columns in `left` are left-aligned, all others right-aligned."""
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for column in range(len(rows[0])):
        grid.add_column(justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=StringIO(), width=_NO_LIMIT, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    yield from (line.rstrip() for line in captured.get().splitlines())


def fitting(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Drop the last columns of a table that is wider than the terminal, but keep the first three. Without a terminal,
    keep all columns."""
    width = shutil.get_terminal_size((_NO_LIMIT, 1)).columns
    ends = accumulate(max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    number = sum(end - 2 <= width for end in ends)
    return [row[: max(number, 3)] for row in rows]


_NO_LIMIT = 10**6


def fit_terminal(text: str) -> str:
    """Wrap the lines of a text between words at the width of the terminal. Without a terminal, do not wrap lines."""
    width = shutil.get_terminal_size((_NO_LIMIT, 0)).columns
    return "\n".join("\n".join(wrapped(line, width, further="    ")) for line in text.splitlines())


def gib(size: float) -> str:
    """Convert a size in bytes to GiB, with two decimals, or two significant digits for small sizes."""
    number = size / 2**30
    return f"{number:,.2f}" if number >= 0.1 or number == 0 else f"{number:.2g}" if number >= 1e-4 else "<1e-4"


def in_bytes(size: float) -> str:
    """Convert a size in bytes to text with a unit: GiB with two decimals; for small sizes, MiB or KiB with one
    decimal."""
    if size == 0 or size >= 0.1 * 2**30:
        return f"{gib(size)} GiB"
    return f"{size / 2**20:,.1f} MiB" if size >= 0.1 * 2**20 else f"{size / 2**10:,.1f} KiB"


def milliseconds(seconds: float) -> str:
    """Convert a time in seconds to milliseconds, with one decimal, or two significant digits for short times."""
    return f"{1e3 * seconds:,.1f}" if seconds >= 1e-3 or seconds == 0 else f"{1e3 * seconds:.2g}"


def in_ms(seconds: float) -> str:
    """Convert a time in seconds to milliseconds, with the unit."""
    return f"{milliseconds(seconds)} ms"


def tera(flops: float) -> str:
    """Convert FLOPs to TFLOP, with one decimal, or two significant digits for small numbers."""
    return f"{flops / 1e12:,.1f}" if flops >= 1e12 else f"{flops / 1e12:.2g}"


def duration(seconds: float) -> str:
    """Convert a time in seconds to `M:SS`, `H:MM:SS` or `N d H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02d}"
    days, hours = divmod(hours, 24)
    return f"{f'{days:,} d ' if days else ''}{hours}:{minutes:02d}:{rest:02d}"
