"""The header of a YAML file, which says at which place of the config its values are."""

from __future__ import annotations

import re
from collections.abc import Iterator

from xlstm_hydra.problems import Problem

from ._yaml_file import BOM, Fault

RECIPE = "# @package _global_"
_HEADER = re.compile(r"\s*#\s*@package\s+(\S+)\s*")
_HEADER_LINE = re.compile(r"\s*#\s*@")
_SIMILAR = re.compile(r"\s*#.*(@|_global_|\bpac?k?age?\b)", re.IGNORECASE)


def header_problem(data: bytes, package: str, is_empty: bool) -> Problem:
    """The problem with a file whose values are where nothing reads them.

    Args:
        data: the file.
        package: the place of its values.
        is_empty: it has none.
    """
    lines = data.removeprefix(BOM).decode("utf-8", "replace").splitlines()
    headers = {number: match[1] for number, line in enumerate(lines, 1) if (match := _HEADER.fullmatch(line))}
    if package in headers.values():
        text = f"its header places its values at {package}, which is not part of a run"
        return Problem({}, text, f"Write `{RECIPE}`, or the name of a group.")
    fix = f"The first line must be `{RECIPE}`."
    if is_empty and not headers:
        return Problem({}, "the file has no values", fix)
    rule = f"its values are placed at {package}, which is not part of a run"
    return Problem({}, f"{rule}{_reason(data, lines, headers)}", fix)


def header_faults(data: bytes) -> Iterator[Fault]:
    """Lines that Hydra takes for a header and cannot read."""
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not _HEADER_LINE.match(line):
            if line.strip():
                return
        elif len(line.strip().lstrip("#").split()) != 2:
            yield Fault(f"cannot read the header {line.strip()!r}", f"Write `{RECIPE}`.", number)


def _reason(data: bytes, lines: list[str], headers: dict[int, str]) -> str:
    """Why Hydra sees no header, where there is something like one."""
    if data.startswith(BOM) and headers:
        return ", because a byte order mark (BOM) before the header hides it; save the file as UTF-8 without BOM"
    if headers:
        number = min(headers)
        return f", because its header is on line {number}, not on the first line"
    for number, line in enumerate(lines, 1):
        if _SIMILAR.match(line):
            return f", because line {number} is not a header: {line.strip()!r}"
    return ", because it has no header" if any(line.strip() for line in lines) else ""
