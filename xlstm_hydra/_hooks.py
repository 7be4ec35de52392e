"""Functions that `xlstm_hydra.hydra` provides to packages that must not import it. They are set when
`xlstm_hydra.hydra` is imported; without it, the defaults below apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xlstm_hydra.configs import DeviceConfig, RunConfig


@dataclass
class Hooks:
    """Functions provided by `xlstm_hydra.hydra`."""

    known_devices: Callable[[], Mapping[str, DeviceConfig]] | None = None
    """Return the configs of all options of the config group `device` by name, including the user's own options. None:
    only the options of this package exist."""

    shortest_layout: Callable[[RunConfig], list[str]] | None = None
    """Return the shortest list of overrides that reproduces the layout of a run. None: print every field of the
    layout."""

    in_sweep: Callable[[], bool] = lambda: False
    """Return True if the task is one job of a sweep."""

    chooses_device: Callable[[], bool] = lambda: True
    """Return True if an option of the config group `device` is selected, or if the config was not composed by Hydra."""


hooks = Hooks()
