"""The devices of a process before it has any, and what they are found to be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from xlstm_hydra._jax_internals import backends_are_initialized, clear_backends


@dataclass(frozen=True)
class Found:
    """What JAX tells of the devices that there are."""

    kind: str
    """What it calls them."""
    platform: str
    number: int
    """Of all processes."""
    per_host: int
    """The most that a host has."""
    own_memory: int | None
    """Bytes that the device with the least has; None where JAX does not tell it."""
    host_share: float
    """Bytes that each device has of its host's memory, which those use that have none of their own."""
    sharing: int
    """Devices that share a host."""

    @classmethod
    def simulated(cls, number: int) -> Found:
        """So many CPU devices of this host."""
        return cls("cpu", "cpu", number, number, None, host_memory() / number, number)


def find_devices() -> Found:
    """The devices of this process, which starts them."""
    devices, local = jax.devices(), len(jax.local_devices())
    limits = device_figures("bytes_limit")
    return Found(
        kind=devices[0].device_kind,
        platform=jax.default_backend(),
        number=len(devices),
        per_host=max(Counter(map(host_of, devices)).values()),
        own_memory=None if limits is None else min(limits),
        host_share=host_memory() / local,
        sharing=local,
    )


def device_figures(name: str) -> list[int] | None:
    """A figure of each device of this process, where JAX tells it of all of them."""
    found = [(device.memory_stats() or {}).get(name) for device in jax.local_devices()]
    known = [figure for figure in found if figure is not None]
    return known if len(known) == len(found) else None


def host_memory() -> int:
    """Bytes of memory that this host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def no_accelerator() -> Iterator[None]:
    """Keep JAX, which makes a few constants while it traces, from taking the memory of a GPU for them, and leave it as
    it was: what the process does next may need other devices."""
    before, had_devices = jax.config.values["jax_platforms"], backends_are_initialized()
    if before == "cpu" and had_devices:
        yield
        return
    jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)
        clear_backends()


def host_of(device: Any) -> int:
    """A number that devices share whose links to each other are fast: that of their host, or of their process where
    only that is known."""
    if device.platform in ("gpu", "cuda", "rocm"):
        for name in ("slice_index", "partition_index"):  # JAX has had both names
            if getattr(device, name, None) is not None:
                return getattr(device, name)
    return device.process_index
