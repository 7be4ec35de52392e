"""A lower bound of the time of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xlstm_hydra.configs import DeviceConfig

from ._counts import Counts


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step that nothing can make shorter, if each resource did nothing but work."""

    compute: float
    """Matrix products, at the device's rate for their types, pipeline bubble included."""

    memory: float
    """Reading and writing memory, pipeline bubble included."""

    network: Mapping[str, float]
    """Sending, by mesh axis."""

    @property
    def seconds(self) -> float:
        """The lower bound: the slowest of the three, where they overlap perfectly."""
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def bound_by(self) -> str:
        """What the lower bound comes from: compute, memory or network."""
        times = {"compute": self.compute, "memory": self.memory, "network": sum(self.network.values())}
        return max(times, key=lambda name: times[name])


def step_time(counts: Counts, sizes: Mapping[str, int], across: tuple[str, ...], device: DeviceConfig) -> StepTime:
    """The time of a step.

    Args:
        counts: what each device does.
        sizes: of the mesh axes.
        across: names of the mesh axes that cross hosts.
        device: its speed.
    """
    raise NotImplementedError
