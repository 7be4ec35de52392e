"""Tables of the pages in docs/explanations/. Each is between two marks that name the script that writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "explanations"


def write(page: str, name: str, rows: Iterable[list[str]]) -> None:
    """Write a table between its two marks in a page, and print it."""
    header, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *body]]
    begin, end = f"<!-- {name}: written by benchmarks/{Path(sys.argv[0]).name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = (DOCS / page).read_text(encoding="utf-8").partition(begin)
    text = before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    (DOCS / page).write_text(text, encoding="utf-8")
    print("\n".join(lines))
