"""The devices that there are, as a plan sees them."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from dataclasses import replace
from typing import Any

import jax

from xlstm_hydra.configs import DeviceConfig
from xlstm_hydra.configs.device import SPEEDS
from xlstm_hydra.hydra import recognise_device
from xlstm_hydra.parallel import host_of

from ._processes import of_all

MEMORY = "xlstm_hydra/memory"
"""Key in the store that process 0 keeps for all."""


def device_here(chosen: DeviceConfig | None) -> DeviceConfig:
    """The figures of the devices that there are: those chosen, or those known of their kind, or none, with the memory
    that they really have.

    Simulated devices, and others that JAX tells no memory of, share what their host has, its speed too.
    """
    first = jax.devices()[0]
    memory, sharing = _memory()
    figures = chosen or recognise_device(first.device_kind) or _unknown(first)
    per_host = max(Counter(map(host_of, jax.devices())).values())
    if first.platform == "tpu":  # a slice is as good as a host
        per_host = max(per_host, figures.devices_per_host)
    here = figures.divided(sharing)
    return replace(here, memory_gib=memory / 2**30, memory_fraction=1.0, devices_per_host=per_host)


def _unknown(device: Any) -> DeviceConfig:
    kind = device.device_kind
    speeds = dict.fromkeys(SPEEDS, 0.0)
    return DeviceConfig(name=kind, platform=device.platform, kinds=[kind], memory_gib=1, devices_per_host=1, **speeds)


def _memory() -> tuple[float, int]:
    """Bytes that each device has, the least of all of them, and how many of them share what a host has."""
    limits = [_told(device, "bytes_limit") for device in jax.local_devices()]
    own = None if None in limits else min(limits)
    mine = {"host": socket.gethostname(), "devices": len(limits), "own": own, "shared": host_memory()}
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
    peaks = [_told(device, "peak_bytes_in_use") for device in jax.local_devices()]
    return None if None in peaks else max(peaks)


def _told(device: Any, name: str) -> int | None:
    return (device.memory_stats() or {}).get(name)
