"""The plan of a run: everything that can be said of it before a device is used.

A lower bound of the time of a step.

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
    """No plan can be made, although the config is valid: the model cannot be traced without devices, or this JAX makes
    programs that the planner cannot read."""

    def __init__(self, why: str, fix: str = "") -> None:
        """Args:
        why: the reason, without a full stop.
        fix: what can be done without a plan.
        """
        self.why = why
        fixes = " ".join(filter(None, [fix, "HYDRA_FULL_ERROR=1 prints the traceback."]))
        super().__init__(f"no plan can be made: {self.reason}. {fixes}")

    @property
    def reason(self) -> str:
        """Why not, and the versions of what planning depends on."""
        return f"{self.why} ({versions('xlstm-hydra', 'jax', 'jaxlib')})"


@contextmanager
def planning(fix: str = "") -> Iterator[None]:
    """Raise what goes wrong while a plan is made as a `PlanError`, so that callers can continue without a plan.

    Args:
        fix: what can be done without a plan.
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
    """Cost of a training step on each device, computed from the programs of other layouts."""

    run: RunConfig
    sizes: Mapping[str, int]
    """Size of each mesh axis."""
    memory: Memory
    counts: Counts
    time: StepTime | None
    """None if the device's speeds are not known."""


@dataclass(frozen=True)
class Plan(Estimate):
    """Cost of a training step on each device, computed from its own program by `make_plan`."""

    num_devices: int
    device: DeviceConfig
    across_hosts: Mapping[str, int]
    """Number of hosts along each mesh axis that crosses hosts."""
    placements: tuple[Placement, ...]
    bubble: float
    """Fraction of the ticks in which a pipeline stage is idle."""

    @property
    def tokens(self) -> int:
        """Tokens in a step, over all devices."""
        config = self.run.model.model_config
        assert config is not None
        return self.run.trainer.batch_size * config.get("context_length")

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return sum(math.prod(placement.parameter.shape) for placement in self.placements)

    @property
    def num_hosts(self) -> int:
        """Hosts that so many devices come in."""
        return math.ceil(self.num_devices / self.device.devices_per_host)

    @property
    def tokens_per_second(self) -> float | None:
        """As many as there can be, over all devices. None where the device's speeds are not known."""
        return None if self.time is None else self.tokens / self.time.seconds

    @property
    def headroom(self) -> int:
        """Bytes of the device's memory that stay free; negative where it does not fit."""
        return self.device.memory_bytes - self.memory.total

    @property
    def fits(self) -> bool:
        """Whether a device has enough memory."""
        return self.headroom >= 0


@planning()
def make_plan(
    run: RunConfig, num_devices: int, device: DeviceConfig, parameters: Sequence[Parameter] | None = None
) -> Plan:
    """Plan a run whose `model_class` is a class.

    Any Flax Linen class is traced; one with a static method `plan_costs` says itself what it costs, see `ModelCosts`.

    Args:
        run: the config.
        num_devices: how many there are.
        device: what they are.
        parameters: of the model. None: they are listed, which takes a third of the time.

    Raises:
        ConfigError: the layout does not fit so many devices, the batch or the model.
        PlanError: the model cannot be traced, or this JAX makes programs that cannot be read.
    """
    if isinstance(run.model.model_class, str):
        fix = "`xlstm_hydra.configs.resolve_classes(run.model)` is the model with it."
        raise ConfigError([Problem({"model_class": run.model.model_class}, "the class itself is needed", fix)])
    if num_devices < 1:
        raise ConfigError([Problem({"num_devices": num_devices}, "a run has one device or more")])
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
    """Plan a run whose loss is there already, on a mesh with devices or without.

    Raises:
        PlanError: as `make_plan`.
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
    """The mesh axes along which the host changes somewhere, each with the hosts along it, where devices are numbered
    host by host and `parallel.assign_devices` gives neighbours to the axes that communicate most."""
    closest_first = run.distributed.device_order or run.parallel.busiest_axes()
    outer_first = tuple(reversed(closest_first))
    hosts = _hosts_along(tuple(sizes[name] for name in outer_first), devices_per_host)
    found = dict(zip(outer_first, hosts, strict=True))
    return {name: found[name] for name in sizes if found[name] > 1}


@cache
def _hosts_along(shape: tuple[int, ...], devices_per_host: int) -> tuple[int, ...]:
    """The most hosts that the devices along each axis of a mesh are on."""
    hosts = (np.arange(math.prod(shape)) // devices_per_host).reshape(shape)
    return tuple(int((np.diff(hosts, axis=axis) != 0).sum(axis).max()) + 1 for axis in range(len(shape)))


# ---- the time of a step


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
