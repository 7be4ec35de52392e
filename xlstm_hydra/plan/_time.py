"""A lower bound of the time of a step.

Three resources of a device work side by side at best, so a step takes at least as long as the slowest of them:

- compute: operations of matrix products / the device's rate for the type of their operands. All other operations
  run in the shadow of the memory that they read.
- memory: bytes read and written / its bandwidth. Compute and memory are the roofline (Williams, Waterman, Patterson,
  Communications of the ACM 52(4), 2009) of the program as a whole.
- network: bytes that a device sends / the bandwidth of the links that they take.

A collective of n devices whose larger side has B bytes has each device send at least (Patarasuk, Yuan, Journal of
Parallel and Distributed Computing 69(2), 2009; rings reach it)

| operation | bytes sent by each device | of them to other hosts, where k of the n devices share each of h hosts |
|---|---|---|
| all-gather, reduce-scatter | B (n - 1) / n | B (h - 1) / n |
| all-reduce | 2 B (n - 1) / n | 2 B (h - 1) / n |
| all-to-all | B (n - 1) / n | B (h - 1) / h |
| collective-permute | B | B, where any neighbours are on different hosts |

The last column is what a host must get from the others, B (h - 1) / h, spread over the links of its k devices:
what several rings, each through another device's link, or an exchange in two levels come to. What goes to other hosts
takes `network_bandwidth`, the rest `host_bandwidth`, both at the same time; the slower of them is the time of the
collective. Latencies are left out, and so is the torus of a TPU, whose axes are taken for rings of the same bandwidth.

The pipeline's bubble needs no term of its own: idle stages compute a microbatch that nobody uses, in the traced program
as on the devices, so that the counts are those of all M + S - 1 ticks. `Plan.bubble` is the share of them. The update
of the parameters is not counted: it reads and writes them, their gradients and the optimizer's state once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xlstm_hydra.configs import DeviceConfig

from ._counts import Counts, Exchange


@dataclass(frozen=True)
class Traffic:
    """What a device sends in a step along the same mesh axes, by the same operation, in the same type."""

    axes: tuple[str, ...]
    """Names of the mesh axes."""

    operation: str
    """As in `Exchange`."""

    dtype: str
    """Element type, by NumPy's name."""

    count: int
    """Collectives in a step."""

    bytes: int
    """Bytes of their larger sides, on each device."""

    within_hosts: float
    """Bytes that each device sends to others of its host."""

    across_hosts: float
    """Bytes that each device sends to other hosts."""

    seconds: float | None
    """Time to send them; None where the device's speeds are not known."""

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends."""
        return self.within_hosts + self.across_hosts

    @property
    def crosses_hosts(self) -> bool:
        """Whether any of them go to other hosts."""
        return self.across_hosts > 0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step that nothing can make shorter, if each resource did nothing but work."""

    compute: float
    """Matrix products, at the device's rate for their types, pipeline bubble included."""

    memory: float
    """Reading and writing memory, pipeline bubble included."""

    network: Mapping[str, float]
    """Sending, by mesh axis; where one collective is over several, by their names with + between."""

    @property
    def seconds(self) -> float:
        """The lower bound: the slowest of the three, where they overlap perfectly."""
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def bound_by(self) -> str:
        """What the lower bound comes from: compute, memory or network."""
        times = {"compute": self.compute, "memory": self.memory, "network": sum(self.network.values())}
        return max(times, key=lambda name: times[name])


def step_time(counts: Counts, sizes: Mapping[str, int], across: Mapping[str, int], device: DeviceConfig) -> StepTime:
    """The time of a step.

    Args:
        counts: what each device does.
        sizes: of the mesh axes.
        across: hosts along each of the mesh axes that cross hosts.
        device: its speed, which must be known.
    """
    network: dict[str, float] = {}
    for row in step_traffic(counts, sizes, across, device):
        name = "+".join(row.axes)
        network[name] = network.get(name, 0.0) + (row.seconds or 0.0)
    compute = sum(flops / product_rate(device, dtype) for dtype, flops in counts.product_flops.items())
    return StepTime(compute, counts.traffic / (device.memory_bandwidth * 1e9), network)


def step_traffic(
    counts: Counts, sizes: Mapping[str, int], across: Mapping[str, int], device: DeviceConfig
) -> tuple[Traffic, ...]:
    """What each device sends in a step, the slowest first. The arguments are those of `step_time`."""
    alike: dict[tuple[tuple[str, ...], str, str], list[Exchange]] = {}
    for exchange in counts.exchanges:
        alike.setdefault((exchange.axes, exchange.operation, exchange.dtype), []).append(exchange)
    rows = [_traffic(exchanges, sizes, across, device) for exchanges in alike.values()]
    return tuple(sorted(rows, key=lambda row: (-(row.seconds or 0.0), -row.wire_bytes)))


def _traffic(
    exchanges: Sequence[Exchange], sizes: Mapping[str, int], across: Mapping[str, int], device: DeviceConfig
) -> Traffic:
    first, size = exchanges[0], sum(exchange.bytes * exchange.count for exchange in exchanges)
    devices = math.prod(sizes[axis] for axis in first.axes)
    hosts = math.prod(across.get(axis, 1) for axis in first.axes)
    within, beyond = (size * share for share in _shares(first.operation, devices, hosts))
    seconds = None
    if device.has_speeds:
        seconds = max(within / device.host_bandwidth, beyond / device.network_bandwidth) / 1e9
    number = sum(exchange.count for exchange in exchanges)
    return Traffic(first.axes, first.operation, first.dtype, number, size, within, beyond, seconds)


def _shares(operation: str, devices: int, hosts: int) -> tuple[float, float]:
    """Shares of the larger side of a collective that each device sends within its host, and to other hosts."""
    if operation == "collective-permute":
        return float(devices > 1 and hosts == 1), float(hosts > 1)
    factor = 2 if operation == "all-reduce" else 1
    beyond = (hosts - 1) / (hosts if operation == "all-to-all" else devices)
    return factor * ((devices - 1) / devices - beyond), factor * beyond


def product_rate(device: DeviceConfig, dtype: str) -> float:
    """Operations per second of matrix products of a type. One without a figure of its own goes at the rate of
    float32."""
    rates = {"bfloat16": device.bfloat16_tflops, "float16": device.float16_tflops}
    return 1e12 * rates.get(dtype, device.float32_tflops)
