"""The plan of a run: everything that can be said of it before a device is used."""

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

from ._counts import Counts, count
from ._jaxpr import trace_loss
from ._memory import Memory, step_memory
from ._own_costs import own_costs, own_memory_and_counts, shard_own_parameters
from ._time import StepTime, step_time


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
class Plan:
    """What a training step costs each device. `make_plan` makes one."""

    run: RunConfig
    num_devices: int
    device: DeviceConfig
    sizes: Mapping[str, int]
    """Size of each mesh axis."""
    across_hosts: Mapping[str, int]
    """The mesh axes along which the host changes somewhere, and how many hosts are along each."""
    placements: tuple[Placement, ...]
    memory: Memory
    counts: Counts
    bubble: float
    """Share of the ticks in which a pipeline stage has nothing to do."""
    time: StepTime | None
    """None where the device's speeds are not known."""

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
