"""The devices that JAX detects, and what it reports of their memory."""

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
    """What JAX reports of the devices that there are."""

    kind: str
    """What it calls them."""
    platform: str
    number: int
    """Of all processes."""
    per_host: int
    """The most that a host has."""
    own_memory: int | None
    """Bytes that the device with the least has; None where JAX does not report it."""
    host_share: float
    """Bytes that each device has of its host's memory, which those use that have none of their own."""
    sharing: int
    """Devices that share a host."""

    @classmethod
    def simulated(cls, number: int) -> DetectedDevices:
        """So many CPU devices of this host."""
        return cls("cpu", "cpu", number, number, None, host_memory() / number, number)


def detect_devices() -> DetectedDevices:
    """Return the devices of all processes, each with the memory that this one knows. Starts them."""
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
    """Return the same with the least memory that a device of any process has. All processes call this."""
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
    """Return the bytes that the device of this process which needed most has needed so far; None where JAX does not
    report it."""
    peaks = _memory_stats("peak_bytes_in_use")
    return None if peaks is None else max(peaks)


def host_memory() -> int:
    """Return the bytes of memory that this host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def host_of(device: Any) -> int:
    """Return a number that devices share whose links to each other are fast: that of their host, or of their process
    where only that is known."""
    if device.platform in ("gpu", "cuda", "rocm"):
        for name in ("slice_index", "partition_index"):  # JAX has had both names
            if getattr(device, name, None) is not None:
                return getattr(device, name)
    return device.process_index


def _memory_stats(name: str) -> list[int] | None:
    """A figure of the memory of each device of this process; None unless JAX reports it of all of them."""
    found = [(device.memory_stats() or {}).get(name) for device in jax.local_devices()]
    known = [figure for figure in found if figure is not None]
    return known if len(known) == len(found) else None
