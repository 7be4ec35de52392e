"""The devices that JAX detects, and the memory that it reports."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import jax

from ._processes import gather_texts

MEMORY = "xlstm_hydra/memory"
"""Key of the memory of each process in the key-value store of process 0."""


@dataclass(frozen=True)
class DetectedDevices:
    """The devices as reported by JAX."""

    kind: str
    """JAX's name of the kind of device, such as `NVIDIA H100 80GB HBM3`."""
    platform: str
    """JAX's name of the platform: `cpu`, `gpu` or `tpu`."""
    number: int
    """Number of devices of all processes."""
    per_host: int
    """Largest number of devices on one host."""
    own_memory: int | None
    """Smallest memory of a device, in bytes; None if JAX does not report it."""
    host_share: float
    """Bytes of host memory per device, for devices without memory of their own."""
    sharing: int
    """Number of devices that share a host."""

    @classmethod
    def simulated(cls, number: int) -> DetectedDevices:
        """Return this number of simulated CPU devices on this host."""
        return cls("cpu", "cpu", number, number, None, host_memory() / number, number)


def detect_devices() -> DetectedDevices:
    """Return the devices of all processes, with the memory known to this process. Starts the devices."""
    devices, local = jax.devices(), len(jax.local_devices())
    limits = _memory_stats("bytes_limit")
    return DetectedDevices(
        kind=devices[0].device_kind,
        platform=jax.default_backend(),
        number=len(devices),
        per_host=max(Counter(map(host_of, devices)).values()),
        own_memory=None if limits is None else min(limits),
        host_share=host_memory() / local,
        sharing=local,
    )


def detect_in_all_processes() -> DetectedDevices:
    """Return the devices with the smallest memory over all processes. All processes must call this."""
    mine = detect_devices()
    memory = {"host": socket.gethostname(), "devices": mine.sharing, "own": mine.own_memory, "shared": host_memory()}
    processes = [json.loads(text) for text in gather_texts(MEMORY, json.dumps(memory))]
    sharing: Counter[str] = Counter()
    for each in processes:
        sharing[each["host"]] += each["devices"]
    own = [each["own"] for each in processes]
    return replace(
        mine,
        own_memory=None if None in own else min(own),
        host_share=min(each["shared"] / sharing[each["host"]] for each in processes),
        sharing=max(sharing.values()),
    )


def peak_memory() -> int | None:
    """Return the highest peak memory of the devices of this process, in bytes; None if JAX does not report it."""
    peaks = _memory_stats("peak_bytes_in_use")
    return None if peaks is None else max(peaks)


def host_memory() -> int:
    """Return the memory of this host, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def host_of(device: Any) -> int:
    """Return a number that is equal for devices with fast links to each other: the host of the device, or its process
    if the host is unknown."""
    if device.platform in ("gpu", "cuda", "rocm"):
        for name in ("slice_index", "partition_index"):  # JAX has used both names
            if getattr(device, name, None) is not None:
                return getattr(device, name)
    return device.process_index


def _memory_stats(name: str) -> list[int] | None:
    """Return a memory statistic of each device of this process; None unless JAX reports it for all of them."""
    found = [(device.memory_stats() or {}).get(name) for device in jax.local_devices()]
    known = [figure for figure in found if figure is not None]
    return known if len(known) == len(found) else None
