"""What a kind of accelerator has and how fast it is: the figures that a plan is made with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, affects
from ._rules import at_least, below, one_of

PLATFORMS = ("cpu", "gpu", "tpu")
"""Kinds of devices, as JAX names them."""

DEFAULT_DEVICE = "h100_80gb"
"""The option of a plan that names no device."""

SPEEDS = (
    *("memory_bandwidth", "float32_tflops", "bfloat16_tflops", "float16_tflops"),
    *("host_bandwidth", "network_bandwidth"),
)
"""The fields that say how fast a device is."""


@config_dataclass
class DeviceConfig(ConfigDict, schema="device"):
    """Memory and speed of one device, and of its links to others. Speeds are the maker's, for dense matrices;
    where all are 0 they are not known, and no time is told."""

    name: str = field(metadata=affects(BOOKKEEPING))
    """What the device is called in plans."""

    platform: str = field(metadata=affects(BOOKKEEPING))
    """Its kind: cpu, gpu or tpu."""

    kinds: list[str] = field(metadata=affects(BOOKKEEPING))
    """What JAX calls such a device (`jax.Device.device_kind`), by which a run knows what it has. Empty: no device is
    taken for one."""

    memory_gib: float = field(metadata=affects(BOOKKEEPING))
    """Memory that programs can allocate, in GiB (2**30 bytes)."""

    memory_fraction: float = field(default=1.0, metadata=affects(BOOKKEEPING))
    """Share of it that JAX takes and a program can use: what XLA_CLIENT_MEM_FRACTION sets on a GPU."""

    memory_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Speed at which it is read or written, in GB/s (10**9 bytes)."""

    float32_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Matrix products in float32 as JAX computes them by default, in TFLOP/s."""

    bfloat16_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Matrix products in bfloat16, in TFLOP/s."""

    float16_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Matrix products in float16, in TFLOP/s."""

    devices_per_host: int = field(metadata=affects(BOOKKEEPING))
    """Devices that the fast links connect: those of a host, or of a slice of TPUs."""

    host_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Bytes that a device can send to others of its host while it receives as many, in GB/s."""

    network_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """The same to devices of other hosts, in GB/s."""

    def rules(self) -> Iterator[Problem]:
        """Ranges; either all speeds are known or none."""
        if not self.name.strip():
            yield Problem({"name": self.name}, "must have letters, since plans call the device so")
        yield from one_of(self, "platform", PLATFORMS)
        yield from at_least(self, 0, "memory_gib", above=True)
        yield from at_least(self, 0, *SPEEDS, above=any(self.get(speed) for speed in SPEEDS))
        yield from at_least(self, 0, "memory_fraction", above=True)
        yield from below(self, 1, "memory_fraction", inclusive=True)
        yield from at_least(self, 1, "devices_per_host")

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """The rule that the figures are of the devices that there are."""
        if self.platform in PLATFORMS and self.platform != platform:
            fix = "Leave the group device away: devices are recognised."
            yield Problem({"platform": self.platform}, f"the devices here are of the kind {platform}", fix)

    @property
    def memory_bytes(self) -> int:
        """Memory that a program can use, in bytes."""
        return int(self.memory_gib * self.memory_fraction * 2**30)

    @property
    def has_speeds(self) -> bool:
        """Whether its speeds are known, so that the time of a step can be told."""
        return all(self.get(speed) for speed in SPEEDS)

    def divided(self, parts: int) -> DeviceConfig:
        """What each of several simulated devices has of this one."""
        return replace(self, memory_gib=self.memory_gib / parts, **{key: self.get(key) / parts for key in SPEEDS})
