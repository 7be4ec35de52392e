"""The devices that there are, as a plan sees them."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from dataclasses import replace

import jax

from xlstm_hydra.configs import DeviceConfig
from xlstm_hydra.configs.device import PLATFORMS, SPEEDS
from xlstm_hydra.hydra import recognise_device
from xlstm_hydra.parallel import host_of

from ._processes import of_all

MEMORY = "xlstm_hydra/memory"
"""Key in the store that process 0 keeps for all."""


def device_here(chosen: DeviceConfig | None) -> DeviceConfig:
    """The figures of the devices that there are: those chosen, or those known of their kind, or none, with the memory
    that they really have, or that which was chosen if it is less.

    Devices of which neither JAX nor the figures know the memory share what their host has, its speed too, and so do
    simulated ones.
    """
    first = jax.devices()[0]
    known = chosen or recognise_device(first.device_kind)
    figures = known or _unknown(first.device_kind)
    memory, sharing = _memory(known.memory_bytes if known is not None and known.platform != "cpu" else None)
    if chosen is not None:
        memory = min(memory, chosen.memory_bytes / sharing)
    per_host = max(Counter(map(host_of, jax.devices())).values())
    if figures.platform == "tpu":  # a slice is as good as a host
        per_host = max(per_host, figures.devices_per_host)
    here = figures.divided(sharing)
    return replace(here, memory_gib=memory / 2**30, memory_fraction=1.0, devices_per_host=per_host)


def _unknown(kind: str) -> DeviceConfig:
    platform, speeds = jax.default_backend(), dict.fromkeys(SPEEDS, 0.0)
    if platform not in PLATFORMS:
        platform = "gpu"  # of a maker that JAX has a plugin for
    return DeviceConfig(name=kind, platform=platform, kinds=[kind], memory_gib=1, devices_per_host=1, **speeds)


def _memory(known: int | None) -> tuple[float, int]:
    """Bytes that each device has, the least of all of them, and how many of them share what a host has.

    Args:
        known: what a device has where JAX does not tell it; None: what its host has.
    """
    limits = _told("bytes_limit")
    own = known if limits is None else min(limits)
    mine = {"host": socket.gethostname(), "devices": len(jax.local_devices()), "own": own, "shared": host_memory()}
    processes = [json.loads(text) for text in of_all(MEMORY, json.dumps(mine))]
    sharing = Counter()
    for each in processes:
        sharing[each["host"]] += each["devices"]
    least = min(each["own"] or each["shared"] / sharing[each["host"]] for each in processes)
    return least, max(sharing.values()) if own is None else 1


def host_memory() -> int:
    """Bytes of memory that this host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int | None:
    """Bytes that the device of this process which needed most has needed so far; None where JAX does not tell."""
    peaks = _told("peak_bytes_in_use")
    return None if peaks is None else max(peaks)


def _told(name: str) -> list[int] | None:
    """A figure of each device of this process, where JAX tells it of all of them."""
    found = [(device.memory_stats() or {}).get(name) for device in jax.local_devices()]
    known = [figure for figure in found if figure is not None]
    return known if len(known) == len(found) else None
