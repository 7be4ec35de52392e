"""The plan of a run: memory, operations, communication and time of a training step, computed without devices.

The step time is a lower bound. At best, three resources of a device work in parallel, so a step takes at least as long
as the slowest of them:

- compute: operations in matrix products / the device's rate for the operand dtype. All other operations are assumed to
  take less time than the memory traffic that they cause.
- memory: bytes read and written / memory bandwidth. Compute and memory form the roofline (Williams, Waterman,
  Patterson, Communications of the ACM 52(4), 2009) of the program as a whole.
- network: bytes sent by the device / bandwidth of the links used.

Consider a collective over n devices on h hosts, and let B be the size in bytes of the larger of its input and output on
a device. Each device sends at least the following (Patarasuk, Yuan, Journal of Parallel and Distributed Computing
69(2), 2009; ring algorithms achieve it):

| operation | bytes sent by each device | of these, bytes sent to other hosts |
|---|---|---|
| all-gather, reduce-scatter | B (n - 1) / n | B (h - 1) / n |
| all-reduce | 2 B (n - 1) / n | 2 B (h - 1) / n |
| all-to-all | B (n - 1) / n | B (h - 1) / h |
| collective-permute | B | B if any neighbors are on different hosts |

For all-gather and reduce-scatter, the last column is the B (h - 1) / h bytes that a host must receive from other hosts,
divided over its n / h devices; an all-reduce is one of each. It is achieved by several rings that cross hosts over the
links of different devices, or by a two-level exchange. Traffic to other hosts uses `network_bandwidth`, and all other
traffic uses `host_bandwidth`. Both run at the same time, and the slower one determines the time of the collective.
Latencies are ignored. The axes of a TPU torus are treated as rings of the same bandwidth.

The pipeline bubble needs no extra term. An idle stage computes a microbatch whose result is discarded, both in the
traced program and on the devices, so the counts include all M + S - 1 ticks of M microbatches in S stages.
`Plan.bubble` is the idle fraction. The optimizer update, which reads and writes parameters, gradients and optimizer
state once, is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np

from xlstm_hydra.configs import DeviceConfig, RunConfig
from xlstm_hydra.errors import TaskError, reason, versions
from xlstm_hydra.parallel import Parameter, Placement, abstract_mesh, bubble_fraction
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.step import ShardedLoss, build_sharded_loss

from ._counts import Counts, Exchange, count
from ._jaxpr import trace_loss
from ._memory import Memory, step_memory
from ._own_costs import own_costs, own_memory_and_counts, shard_own_parameters


class PlanError(TaskError):
    """Error for a valid config that cannot be planned: the model cannot be traced without devices, or the planner
    cannot read the programs of this JAX version."""

    def __init__(self, why: str, fix: str = "") -> None:
        """Compose the message from the reason, without a full stop, and a way to continue without a plan."""
        self.why = why
        fixes = " ".join(filter(None, [fix, "HYDRA_FULL_ERROR=1 prints the traceback."]))
        super().__init__(f"no plan can be made: {self.reason}. {fixes}")

    @property
    def reason(self) -> str:
        """The reason, with the versions of the packages that planning depends on."""
        return f"{self.why} ({versions('xlstm-hydra', 'jax', 'jaxlib')})"


@contextmanager
def planning(fix: str = "") -> Iterator[None]:
    """Convert any error except a `ConfigError` to a `PlanError`, so that callers can continue without a plan.

    Args:
        fix: a way to continue without a plan.
    """
    try:
        yield
    except ConfigError:
        raise
    except PlanError as error:
        raise (PlanError(error.why, fix) if fix else error) from error.__cause__
    except Exception as error:
        raise PlanError(reason(error).rstrip("."), fix) from error


@dataclass(frozen=True)
class Estimate:
    """Cost of a training step on each device, estimated from the programs of other layouts."""

    run: RunConfig
    sizes: Mapping[str, int]
    """Size of each mesh axis."""
    memory: Memory
    counts: Counts
    time: StepTime | None
    """None if the device's speeds are not known."""


@dataclass(frozen=True)
class Plan(Estimate):
    """Cost of a training step on each device, computed by `make_plan` from its own program."""

    num_devices: int
    device: DeviceConfig
    across_hosts: Mapping[str, int]
    """Number of hosts along each mesh axis that crosses hosts."""
    placements: tuple[Placement, ...]
    bubble: float
    """Fraction of the ticks in which a pipeline stage is idle."""

    @property
    def tokens(self) -> int:
        """Tokens per step on all devices."""
        config = self.run.model.model_config
        assert config is not None
        return self.run.trainer.batch_size * config.get("context_length")

    @property
    def num_parameters(self) -> int:
        """Total number of elements of all parameters."""
        return sum(math.prod(placement.parameter.shape) for placement in self.placements)

    @property
    def num_hosts(self) -> int:
        """Number of hosts that the devices are on."""
        return math.ceil(self.num_devices / self.device.devices_per_host)

    @property
    def tokens_per_second(self) -> float | None:
        """Upper bound on the throughput of all devices; None if the device's speeds are not known."""
        return None if self.time is None else self.tokens / self.time.seconds

    @property
    def headroom(self) -> int:
        """Bytes of device memory that remain free at the peak; negative if the run does not fit."""
        return self.device.memory_bytes - self.memory.total

    @property
    def fits(self) -> bool:
        """True if the run fits into device memory."""
        return self.headroom >= 0


@planning()
def make_plan(
    run: RunConfig, num_devices: int, device: DeviceConfig, parameters: Sequence[Parameter] | None = None
) -> Plan:
    """Plan a run. Its `model_class` must be a class.

    A class with a static method `plan_costs` provides its own costs; see `ModelCosts`. Any other Flax Linen class is
    traced.

    Args:
        run: the config.
        num_devices: number of devices.
        device: properties of each device.
        parameters: parameters of the model. None: they are listed first, which takes a third of the time.

    Raises:
        ConfigError: the layout does not match the number of devices, the batch size or the model.
        PlanError: the model cannot be traced, or the traced program cannot be read with this JAX version.
    """
    if isinstance(run.model.model_class, str):
        fix = "`xlstm_hydra.configs.resolve_classes(run.model)` replaces the name with the class."
        raise ConfigError([Problem({"model_class": run.model.model_class}, "must be a class, not a name", fix)])
    if num_devices < 1:
        raise ConfigError([Problem({"num_devices": num_devices}, "must be 1 or more")])
    if problems := list(run.device_rules(num_devices)):
        raise ConfigError(problems)
    mesh = abstract_mesh(run.parallel, num_devices)
    costs = own_costs(run)
    if costs is None:
        return plan_sharded_loss(build_sharded_loss(run, mesh, parameters), device)
    sizes = dict(mesh.shape)
    placements = shard_own_parameters(run, costs, sizes)
    return _plan(run, device, sizes, placements, *own_memory_and_counts(run, costs, placements, sizes))


@planning()
def plan_sharded_loss(loss: ShardedLoss, device: DeviceConfig) -> Plan:
    """Plan a run from its loss, on a mesh with or without devices.

    Raises:
        PlanError: see `make_plan`.
    """
    program = trace_loss(loss)
    memory, counts = step_memory(loss, program), count(program)
    return _plan(loss.run, device, dict(loss.mesh.shape), loss.placements, memory, counts)


def _plan(
    run: RunConfig,
    device: DeviceConfig,
    sizes: Mapping[str, int],
    placements: tuple[Placement, ...],
    memory: Memory,
    counts: Counts,
) -> Plan:
    data, fsdp, stages, _ = sizes.values()
    across = axes_across(run, sizes, device.devices_per_host)
    return Plan(
        run=run,
        num_devices=math.prod(sizes.values()),
        device=device,
        sizes=sizes,
        across_hosts=across,
        placements=placements,
        memory=memory,
        counts=counts,
        bubble=bubble_fraction(stages, run.trainer.microbatches(data, fsdp, stages)),
        time=step_time(counts, sizes, across, device) if device.has_speeds else None,
    )


def axes_across(run: RunConfig, sizes: Mapping[str, int], devices_per_host: int) -> dict[str, int]:
    """Return the number of hosts along each mesh axis that crosses hosts. Devices are numbered host by host, and
    `parallel.assign_devices` gives neighboring devices to the mesh axes that communicate most."""
    closest_first = run.distributed.device_order or run.parallel.busiest_axes()
    outer_first = tuple(reversed(closest_first))
    hosts = _hosts_along(tuple(sizes[name] for name in outer_first), devices_per_host)
    found = dict(zip(outer_first, hosts, strict=True))
    return {name: found[name] for name in sizes if found[name] > 1}


@cache
def _hosts_along(shape: tuple[int, ...], devices_per_host: int) -> tuple[int, ...]:
    """Return the maximum number of hosts along each mesh axis."""
    hosts = (np.arange(math.prod(shape)) // devices_per_host).reshape(shape)
    return tuple(int((np.diff(hosts, axis=axis) != 0).sum(axis).max()) + 1 for axis in range(len(shape)))


# ---- the time of a step


@dataclass(frozen=True)
class Traffic:
    """Totals of all collectives in a step that have the same mesh axes, operation and dtype."""

    axes: tuple[str, ...]
    """Names of the mesh axes."""

    operation: str
    """See `Exchange.operation`."""

    dtype: str
    """NumPy name of the dtype."""

    count: int
    """Number of collectives per step."""

    bytes: int
    """Bytes of the larger of input and output on each device, summed over the collectives."""

    within_hosts: float
    """Bytes that each device sends to devices on the same host."""

    across_hosts: float
    """Bytes that each device sends to devices on other hosts."""

    seconds: float | None
    """Time in seconds to send them; None if the device's speeds are not known."""


@dataclass(frozen=True)
class StepTime:
    """Seconds that each resource is busy during a step."""

    compute: float
    """Seconds for matrix products, including the pipeline bubble."""

    memory: float
    """Seconds for memory reads and writes, including the pipeline bubble."""

    network: Mapping[str, float]
    """Seconds for communication, by mesh axis. For a collective over several mesh axes, their names are joined with
    `+`."""

    @property
    def seconds(self) -> float:
        """Lower bound of the step time: the slowest of the three, assuming that they overlap perfectly."""
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def bound_by(self) -> str:
        """The slowest resource: compute, memory or network."""
        times = {"compute": self.compute, "memory": self.memory, "network": sum(self.network.values())}
        return max(times, key=lambda name: times[name])


def step_time(counts: Counts, sizes: Mapping[str, int], across: Mapping[str, int], device: DeviceConfig) -> StepTime:
    """Return the estimated seconds that each resource is busy during a step.

    Args:
        counts: operations, memory traffic and collectives of each device.
        sizes: size of each mesh axis.
        across: number of hosts along each mesh axis that crosses hosts.
        device: a device whose speeds are known.
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
    """Return the communication of each device in a step, slowest first. The arguments are those of `step_time`."""
    alike: dict[tuple[tuple[str, ...], str, str], list[Exchange]] = {}
    for exchange in counts.exchanges:
        alike.setdefault((exchange.axes, exchange.operation, exchange.dtype), []).append(exchange)
    rows = [_traffic(exchanges, sizes, across, device) for exchanges in alike.values()]
    return tuple(sorted(rows, key=lambda row: (-(row.seconds or 0.0), -row.within_hosts - row.across_hosts)))


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
    """Return the bytes that each device sends within its host and to other hosts, as multiples of B in the table
    above."""
    if operation == "collective-permute":
        return float(devices > 1 and hosts == 1), float(hosts > 1)
    factor = 2 if operation == "all-reduce" else 1
    beyond = (hosts - 1) / (hosts if operation == "all-to-all" else devices)
    return factor * ((devices - 1) / devices - beyond), factor * beyond


def product_rate(device: DeviceConfig, dtype: str) -> float:
    """Return matrix product operations per second. Dtypes other than bfloat16 and float16 use the float32 rate."""
    rates = {"bfloat16": device.bfloat16_tflops, "float16": device.float16_tflops}
    return 1e12 * rates.get(dtype, device.float32_tflops)
