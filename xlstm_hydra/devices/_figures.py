"""The devices that a run has, as a plan sees them."""

from __future__ import annotations

from dataclasses import replace

from xlstm_hydra.configs import DeviceConfig
from xlstm_hydra.configs.device import PLATFORMS, SPEEDS
from xlstm_hydra.hydra import recognise_device

from ._backends import Found


def device_of(found: Found, chosen: DeviceConfig | None) -> DeviceConfig:
    """The figures of devices: those chosen, or those known of their kind, or none, with the memory that they really
    have, or that which was chosen if it is less.

    Devices of which neither JAX nor the figures know the memory share what their host has, its speed too, and so do
    simulated ones.
    """
    known = chosen or recognise_device(found.kind)
    figures = known or _unknown(found)
    memory, sharing = found.own_memory, 1
    if memory is None and known is not None and known.platform != "cpu":
        memory = known.memory_bytes
    if memory is None:
        memory, sharing = found.host_share, found.sharing
    if chosen is not None:
        memory = min(memory, chosen.memory_bytes / sharing)
    # A slice of TPUs is as good as a host.
    per_host = max(found.per_host, figures.devices_per_host) if figures.platform == "tpu" else found.per_host
    here = figures.divided(sharing)
    return replace(here, memory_gib=memory / 2**30, memory_fraction=1.0, devices_per_host=per_host)


def _unknown(found: Found) -> DeviceConfig:
    platform = found.platform if found.platform in PLATFORMS else "gpu"  # of a maker that JAX has a plugin for
    speeds = dict.fromkeys(SPEEDS, 0.0)
    return DeviceConfig(
        name=found.kind, platform=platform, kinds=[found.kind], memory_gib=1, devices_per_host=1, **speeds
    )
