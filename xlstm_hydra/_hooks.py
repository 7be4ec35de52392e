"""Functions of the package `hydra` for the packages below it, which do not import it. It sets them when it is imported;
without Hydra, each has an answer of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xlstm_hydra.configs import DeviceConfig, RunConfig


@dataclass
class Hooks:
    """What the packages below `hydra` can ask."""

    known_devices: Callable[[], Mapping[str, DeviceConfig]] | None = None
    """Return the figures of every option of the group `device`, the user's own included. None: there are only ours."""

    shortest_layout: Callable[[RunConfig], list[str]] | None = None
    """Return the shortest overrides that compose to the layout of a run. None: all its fields are set."""

    in_sweep: Callable[[], bool] = lambda: False
    """True if the task is one job of a sweep."""

    chooses_device: Callable[[], bool] = lambda: True
    """True if the config of the task says itself which device it is about."""


hooks = Hooks()
