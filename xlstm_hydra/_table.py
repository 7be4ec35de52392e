"""Tables as text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlstm_hydra._printable import printable


def table(rows: Sequence[Sequence[str]], left: Collection[int]) -> Iterator[str]:
    """Lines with columns, those in `left` flush left, the others flush right."""
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for column in range(len(rows[0])):
        grid.add_column(justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=StringIO(), width=_NO_LIMIT, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    yield from (line.rstrip() for line in captured.get().splitlines())


_NO_LIMIT = 10**6
