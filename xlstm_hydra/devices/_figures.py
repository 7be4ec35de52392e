"""Speed and memory of devices: of all known device kinds, and of the devices of a run."""

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
    """Return the speed and memory of all known devices, by option name in the config group `device`. If Hydra is
    running, the user's own options are included."""
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
    """Return the speed and the actual memory of the detected devices; see `device_of`. All processes must call this
    function.

    Args:
        chosen: the device in the config. None: look up the detected kind of device.
    """
    return device_of(detect_in_all_processes(), chosen)


def device_of(detected: DetectedDevices, chosen: DeviceConfig | None) -> DeviceConfig:
    """Return the speed and memory of detected devices.

    The speed is that of `chosen` or, if `chosen` is None, of the known device of the detected kind; an unknown kind has
    speed 0. The memory is the detected memory, or the memory of `chosen` if that is smaller. If JAX does not report the
    memory of an accelerator, the memory of the known device is used; CPU devices and unknown devices then share the
    memory and the speed of their host.

    Args:
        detected: the detected devices.
        chosen: the device in the config. None: look up the detected kind of device.
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
    # The links within a TPU slice are as fast as those within a host.
    per_host = max(detected.per_host, figures.devices_per_host) if figures.platform == "tpu" else detected.per_host
    here = figures.divided(sharing)
    return replace(here, memory_gib=memory / 2**30, memory_fraction=1.0, devices_per_host=per_host)


def _unknown(detected: DetectedDevices) -> DeviceConfig:
    platform = detected.platform if detected.platform in PLATFORMS else "gpu"  # the platform of a JAX plugin
    speeds = dict.fromkeys(SPEEDS, 0.0)
    return DeviceConfig(
        name=detected.kind, platform=platform, kinds=[detected.kind], memory_gib=1, devices_per_host=1, **speeds
    )
