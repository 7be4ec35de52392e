"""Config group `device`: memory and speed of a kind of accelerator, used for planning."""

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
"""The device that is planned for by default."""

SPEEDS = (
    *("memory_bandwidth", "float32_tflops", "bfloat16_tflops", "float16_tflops"),
    *("host_bandwidth", "network_bandwidth"),
)
"""The fields for the speed of a device."""


@config_dataclass
class DeviceConfig(ConfigDict, schema="device"):
    """Memory and speed of one device and of its links to others. Speeds are the manufacturer's figures for dense
    matrices. If all speeds are 0, they are unknown and no times are predicted."""

    name: str = field(metadata=affects(BOOKKEEPING))
    """Name of the device in plans."""

    platform: str = field(metadata=affects(BOOKKEEPING))
    """JAX platform of the device: cpu, gpu or tpu."""

    kinds: list[str] = field(metadata=affects(BOOKKEEPING))
    """JAX's names of the device (`jax.Device.device_kind`), by which a run recognises it. Empty: the device is never
    recognised."""

    memory_gib: float = field(metadata=affects(BOOKKEEPING))
    """Memory available to programs, in GiB (2**30 bytes)."""

    memory_fraction: float = field(default=1.0, metadata=affects(BOOKKEEPING))
    """Fraction of `memory_gib` that JAX allocates, between 0 and 1. On a GPU, XLA_CLIENT_MEM_FRACTION sets it."""

    memory_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Bandwidth of reading or writing the memory, in GB/s (10**9 bytes per second)."""

    float32_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Speed of float32 matrix products at JAX's default precision, in TFLOP/s."""

    bfloat16_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Speed of bfloat16 matrix products, in TFLOP/s."""

    float16_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Speed of float16 matrix products, in TFLOP/s."""

    devices_per_host: int = field(metadata=affects(BOOKKEEPING))
    """Number of devices connected by the fast links: those of one host, or of one TPU slice."""

    host_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Bandwidth between a device and the others of its host, per direction with both in use, in GB/s."""

    network_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Bandwidth between a device and those of other hosts, per direction with both in use, in GB/s."""

    def rules(self) -> Iterator[Problem]:
        """Check ranges, and that either all speeds are given or none."""
        if not self.name.strip():
            yield Problem({"name": self.name}, "must not be empty, because plans show it")
        yield from one_of(self, "platform", PLATFORMS)
        yield from at_least(self, 0, "memory_gib", above=True)
        yield from at_least(self, 0, *SPEEDS, above=any(self.get(speed) for speed in SPEEDS))
        yield from at_least(self, 0, "memory_fraction", above=True)
        yield from below(self, 1, "memory_fraction", inclusive=True)
        yield from at_least(self, 1, "devices_per_host")

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """Check that the figures are for the platform of the devices present."""
        if self.platform in PLATFORMS and self.platform != platform:
            fix = "Remove the group device: the devices are recognised without it."
            yield Problem({"platform": self.platform}, f"the platform of the devices present is {platform}", fix)

    @property
    def memory_bytes(self) -> int:
        """Memory available to a program, in bytes."""
        return int(self.memory_gib * self.memory_fraction * 2**30)

    @property
    def has_speeds(self) -> bool:
        """True if the speeds are known, so that the time of a step can be predicted."""
        return all(self.get(speed) for speed in SPEEDS)

    def divided(self, parts: int) -> DeviceConfig:
        """Return the share of this device that each of several simulated devices has."""
        return replace(self, memory_gib=self.memory_gib / parts, **{key: self.get(key) / parts for key in SPEEDS})
