"""The devices that there are, as a plan sees them."""

from __future__ import annotations

import json
import socket
from collections import Counter
from dataclasses import replace

from xlstm_hydra.configs import DeviceConfig

from ._backends import Found, device_figures, find_devices, host_memory
from ._figures import device_of
from ._processes import of_all

MEMORY = "xlstm_hydra/memory"
"""Key in the store that process 0 keeps for all."""


def device_here(chosen: DeviceConfig | None) -> DeviceConfig:
    """The figures of the devices that there are in all processes, with the memory that they really have."""
    return device_of(_of_all_processes(find_devices()), chosen)


def _of_all_processes(mine: Found) -> Found:
    """The least memory that a device of any process has."""
    told = {"host": socket.gethostname(), "devices": mine.sharing, "own": mine.own_memory, "shared": host_memory()}
    processes = [json.loads(text) for text in of_all(MEMORY, json.dumps(told))]
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
    """Bytes that the device of this process which needed most has needed so far; None where JAX does not tell."""
    peaks = device_figures("peak_bytes_in_use")
    return None if peaks is None else max(peaks)
