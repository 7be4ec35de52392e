"""Every parameter: shape, spec, bytes per device, and why it is whole."""

from __future__ import annotations

from collections.abc import Iterable

from xlstm_hydra._printable import printable

from ._sharding import Placement


def report_rows(placements: Iterable[Placement]) -> list[tuple[str, str, str, str, str]]:
    """Path, global shape, spec, bytes per device and reason of each parameter, as text."""
    return [
        (
            printable(placement.parameter.path),
            "x".join(map(str, placement.parameter.shape)) or "scalar",
            "(" + ", ".join(str(axis or "-") for axis in placement.spec) + ")",
            f"{placement.bytes_per_device:,}",
            f"whole: {placement.whole_because}" if placement.whole_because else "",
        )
        for placement in placements
    ]


def report(placements: Iterable[Placement]) -> str:
    """The report as plain text, one parameter a line, with the totals at the end."""
    placements = list(placements)
    header = ("parameter", "shape", "spec", "bytes/device", "")
    rows = [header, *report_rows(placements)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{path:<{widths[0]}}  {shape:<{widths[1]}}  {spec:<{widths[2]}}  {size:>{widths[3]}}  {reason}".rstrip()
        for path, shape, spec, size, reason in rows
    ]
    return "\n".join([*lines, "", summary(placements)])


def summary(placements: Iterable[Placement]) -> str:
    """One line: how many parameters are sharded, and how many bytes of them each device holds."""
    placements = list(placements)
    sharded = [placement for placement in placements if placement.fsdp_axis is not None]
    total = sum(placement.bytes_per_device * placement.shards for placement in placements)
    device = sum(placement.bytes_per_device for placement in placements)
    count = sum(
        placement.bytes_per_device * placement.shards // placement.parameter.itemsize for placement in placements
    )
    return (
        f"{count:,} parameters in {len(placements)} arrays, {total:,} bytes; {device:,} bytes on each device, "
        f"{len(sharded)} arrays sharded by FSDP"
    )
