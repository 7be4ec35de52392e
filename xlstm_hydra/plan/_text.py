"""Numbers and tables as text: sizes in GiB, times in ms, work in TFLOP."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


def gib(size: float) -> str:
    """GiB with two digits behind the point, or two that mean something."""
    number = size / 2**30
    return f"{number:,.2f}" if number >= 0.1 or number == 0 else f"{number:.2g}" if number >= 1e-4 else "<1e-4"


def in_gib(size: float) -> str:
    """The same with its unit."""
    return f"{gib(size)} GiB"


def milliseconds(seconds: float) -> str:
    """Milliseconds with a digit behind the point, or two that mean something."""
    return f"{1e3 * seconds:,.1f}" if seconds >= 1e-3 or seconds == 0 else f"{1e3 * seconds:.2g}"


def in_ms(seconds: float) -> str:
    """The same with its unit."""
    return f"{milliseconds(seconds)} ms"


def tera(flops: float) -> str:
    """TFLOP with a digit behind the point, or two that mean something."""
    return f"{flops / 1e12:,.1f}" if flops >= 1e12 else f"{flops / 1e12:.2g}"


def table(rows: Sequence[Sequence[str]], left: Collection[int]) -> Iterator[str]:
    """Lines with columns, those in `left` flush left, the others flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            f"{text:<{width}}" if column in left else f"{text:>{width}}"
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
