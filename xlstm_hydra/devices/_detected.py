"""Devices detected by JAX, and their memory."""

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
"""Key in the key-value store of process 0 under which the processes publish the memory of their devices."""


@dataclass(frozen=True)
class DetectedDevices:
    """The devices of a run as reported by JAX."""

    kind: str
    """`device_kind` in JAX, such as `NVIDIA H100 80GB HBM3`."""
    platform: str
    """JAX platform, such as `cpu`, `gpu` or `tpu`."""
    number: int
    """Number of devices in all processes."""
    per_host: int
    """Largest number of devices on one host."""
    own_memory: int | None
    """Memory in bytes of the device with the least memory; None if JAX does not report the memory of all devices."""
    host_share: float
    """Host memory per device, in bytes, for devices without memory of their own."""
    sharing: int
    """Largest number of devices that share the memory of one host."""

    @classmethod
    def simulated(cls, number: int) -> DetectedDevices:
        """Return `number` simulated CPU devices on this host."""
        return cls("cpu", "cpu", number, number, None, host_memory() / number, number)


def detect_devices() -> DetectedDevices:
    """Return the devices of all processes, with the memory of the devices and of the host of this process. Initializes
    the devices."""
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
    """Return the devices of all processes, with the smallest memory that any process has. All processes must call this
    function."""
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
    """Return the peak memory in bytes of the device with the highest peak in this process; None if JAX does not report
    peak memory."""
    peaks = _memory_stats("peak_bytes_in_use")
    return None if peaks is None else max(peaks)


def host_memory() -> int:
    """Return the total memory of this host, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def host_of(device: Any) -> int:
    """Return the number of the host of a device. Devices with the same host number have fast links to each other.

    This is the slice index of a GPU if JAX reports the slice index, and the process index of any other device.
    """
    if device.platform in ("gpu", "cuda", "rocm"):
        for name in ("slice_index", "partition_index"):  # JAX has used both names
            if getattr(device, name, None) is not None:
                return getattr(device, name)
    return device.process_index


def _memory_stats(name: str) -> list[int] | None:
    """Return the memory statistic `name` of each device of this process, in bytes; None unless JAX reports the
    statistic for all devices."""
    found = [(device.memory_stats() or {}).get(name) for device in jax.local_devices()]
    known = [figure for figure in found if figure is not None]
    return known if len(known) == len(found) else None
