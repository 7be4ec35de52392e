"""The devices of this machine, seen without taking them: a job of the sweep will need them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

from xlstm_hydra.problems import ConfigError, Problem

if TYPE_CHECKING:
    from xlstm_hydra.devices import DetectedDevices

LOOK = """
import json, sys
from dataclasses import asdict
from xlstm_hydra.devices import detect_devices
print("\\n" + json.dumps(asdict(detect_devices())))
"""
"""A program that tells what devices there are."""


def devices_here(simulated: int | None) -> DetectedDevices:
    """The devices that a job on this machine has.

    Raises:
        ConfigError: JAX finds none.
    """
    from xlstm_hydra.devices import DetectedDevices

    if simulated is not None:
        return DetectedDevices.simulated(simulated)
    return DetectedDevices.simulated(_cpu_devices(os.environ)) if has_cpu_alone() else _look()


def has_cpu_alone() -> bool:
    """Whether it is certain that JAX has no other devices than the CPU: it was told so, or nothing is installed that
    could find others."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _cpu_devices(environ: os._Environ[str]) -> int:
    """As many as JAX makes of the CPU."""
    forced = re.search(r"--xla_force_host_platform_device_count=(\d+)", environ.get("XLA_FLAGS", ""))
    return int(environ.get("JAX_NUM_CPU_DEVICES") or (forced[1] if forced else 1))


@cache
def _look() -> DetectedDevices:
    """Ask JAX in a process of its own, which takes 3 seconds."""
    from xlstm_hydra.devices import DetectedDevices

    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError([Problem({}, f"JAX finds no devices on this machine: {reason}")])
    return DetectedDevices(**json.loads(done.stdout.strip().rpartition("\n")[2]))
