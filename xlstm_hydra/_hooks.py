"""Functions that the package `hydra` provides to packages that must not import it. It sets them when it is imported.
Without Hydra, the defaults below apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xlstm_hydra.configs import DeviceConfig, RunConfig


@dataclass
class Hooks:
    """The functions that `hydra` provides."""

    known_devices: Callable[[], Mapping[str, DeviceConfig]] | None = None
    """Return the config of every option of the group `device`, including the user's own. None: only ours exist."""

    shortest_layout: Callable[[RunConfig], list[str]] | None = None
    """Return the shortest overrides that reproduce the layout of a run. None: every field of it is printed."""

    in_sweep: Callable[[], bool] = lambda: False
    """Return True if the task is one job of a sweep."""

    chooses_device: Callable[[], bool] = lambda: True
    """Return True if the config of the task selects the device itself."""


hooks = Hooks()
