"""Config group `device`: memory and speed of an accelerator, used for planning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, affects
from ._rules import at_least, below, one_of

PLATFORMS = ("cpu", "gpu", "tpu")
"""JAX platform names."""

DEFAULT_DEVICE = "h100_80gb"
"""Option of the group `device` that a plan uses by default."""

SPEEDS = (
    *("memory_bandwidth", "float32_tflops", "bfloat16_tflops", "float16_tflops"),
    *("host_bandwidth", "network_bandwidth"),
)
"""Names of the fields that contain speeds."""


@config_dataclass
class DeviceConfig(ConfigDict, schema="device"):
    """Memory and speed of one device and of its links to other devices. Speeds are the manufacturer's figures for dense
    matrices. If all speeds are 0, they are unknown and no times are predicted."""

    name: str = field(metadata=affects(BOOKKEEPING))
    """Name of the device in plans."""

    platform: str = field(metadata=affects(BOOKKEEPING))
    """JAX platform of the device: cpu, gpu or tpu."""

    kinds: list[str] = field(metadata=affects(BOOKKEEPING))
    """Values of `jax.Device.device_kind` by which a run recognizes the device. Empty: the device is never
    recognized."""

    memory_gib: float = field(metadata=affects(BOOKKEEPING))
    """Memory of one device that is available to programs, in GiB (2**30 bytes)."""

    memory_fraction: float = field(default=1.0, metadata=affects(BOOKKEEPING))
    """Fraction of `memory_gib` that JAX allocates, above 0 and at most 1. On a GPU, the environment variable
    `XLA_CLIENT_MEM_FRACTION` determines it."""

    memory_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Memory bandwidth, in GB/s (10**9 bytes per second)."""

    float32_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Speed of float32 matrix products at JAX's default precision, in TFLOP/s (10**12 operations per second)."""

    bfloat16_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Speed of bfloat16 matrix products, in TFLOP/s (10**12 operations per second)."""

    float16_tflops: float = field(metadata=affects(BOOKKEEPING))
    """Speed of float16 matrix products, in TFLOP/s (10**12 operations per second)."""

    devices_per_host: int = field(metadata=affects(BOOKKEEPING))
    """Number of devices connected by fast links: the devices of one host, or of one TPU slice."""

    host_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Bandwidth between a device and the other devices of its host, in GB/s per direction, with both directions in
    use."""

    network_bandwidth: float = field(metadata=affects(BOOKKEEPING))
    """Bandwidth between a device and the devices of other hosts, in GB/s per direction, with both directions in use."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, and that either all speeds are given or all are 0."""
        if not self.name.strip():
            yield Problem({"name": self.name}, "must not be empty, because plans show it")
        yield from one_of(self, "platform", PLATFORMS)
        yield from at_least(self, 0, "memory_gib", above=True)
        yield from at_least(self, 0, *SPEEDS, above=any(self.get(speed) for speed in SPEEDS))
        yield from at_least(self, 0, "memory_fraction", above=True)
        yield from below(self, 1, "memory_fraction", inclusive=True)
        yield from at_least(self, 1, "devices_per_host")

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """Check that this config is for the platform of the devices present."""
        if self.platform in PLATFORMS and self.platform != platform:
            fix = "Remove the config group device. The devices present are recognized automatically."
            yield Problem({"platform": self.platform}, f"the platform of the devices present is {platform}", fix)

    @property
    def memory_bytes(self) -> int:
        """Memory that a program can allocate on one device, in bytes."""
        return int(self.memory_gib * self.memory_fraction * 2**30)

    @property
    def has_speeds(self) -> bool:
        """True if the speeds are known, which is required to predict the time of a step."""
        return all(self.get(speed) for speed in SPEEDS)

    def divided(self, parts: int) -> DeviceConfig:
        """Return the config of one of `parts` simulated devices, which share the memory and the speeds of this device
        equally."""
        return replace(self, memory_gib=self.memory_gib / parts, **{key: self.get(key) / parts for key in SPEEDS})
