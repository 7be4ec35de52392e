"""The figures of devices: of each kind that is known, and of those that a run has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import yaml

from xlstm_hydra._hooks import hooks
from xlstm_hydra.conf_dir import conf_dir
from xlstm_hydra.configs import DeviceConfig
from xlstm_hydra.configs.device import PLATFORMS, SPEEDS

from ._detected import DetectedDevices, detect_in_all_processes


def known_devices() -> Mapping[str, DeviceConfig]:
    """Return the figures of all kinds of devices that are known, by name: those of `conf/device`, and with Hydra those
    of the user's own options."""
    return _ours() if hooks.known_devices is None else hooks.known_devices()


@cache
def _ours() -> Mapping[str, DeviceConfig]:
    files = sorted((conf_dir() / "device").glob("*.yaml"))
    values = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    return {
        name: DeviceConfig(**{key: value for key, value in fields.items() if key != "defaults"})
        for name, fields in values.items()
    }


def device_here(chosen: DeviceConfig | None) -> DeviceConfig:
    """Return the figures of the devices that there are, with the memory that they really have. All processes call
    this."""
    return device_of(detect_in_all_processes(), chosen)


def device_of(detected: DetectedDevices, chosen: DeviceConfig | None) -> DeviceConfig:
    """Return the figures of devices: those chosen, or those known of their kind, or none, with the memory that they
    really have, or that which was chosen if it is less.

    Devices of which neither JAX nor the figures know the memory share what their host has, its speed too, and so do
    simulated ones.
    """
    known = chosen or next((each for each in known_devices().values() if detected.kind in each.kinds), None)
    figures = known or _unknown(detected)
    memory, sharing = detected.own_memory, 1
    if memory is None and known is not None and known.platform != "cpu":
        memory = known.memory_bytes
    if memory is None:
        memory, sharing = detected.host_share, detected.sharing
    if chosen is not None:
        memory = min(memory, chosen.memory_bytes / sharing)
    # A slice of TPUs is as good as a host.
    per_host = max(detected.per_host, figures.devices_per_host) if figures.platform == "tpu" else detected.per_host
    here = figures.divided(sharing)
    return replace(here, memory_gib=memory / 2**30, memory_fraction=1.0, devices_per_host=per_host)


def _unknown(detected: DetectedDevices) -> DeviceConfig:
    platform = detected.platform if detected.platform in PLATFORMS else "gpu"  # of a maker that JAX has a plugin for
    speeds = dict.fromkeys(SPEEDS, 0.0)
    return DeviceConfig(
        name=detected.kind, platform=platform, kinds=[detected.kind], memory_gib=1, devices_per_host=1, **speeds
    )
