"""What differs between Hydra 1.3 and 1.4. Goes away with 1.3."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from hydra import __version__
from omegaconf import OmegaConf

IS_1_3 = tuple(map(int, __version__.split(".")[:2])) < (1, 4)

VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_1_3 else {}
"""Keyword arguments of `hydra.main` and `hydra.initialize`: 1.3 warns without a version base, 1.4 warns of one."""

REPLACE: dict[str, Any] = {} if IS_1_3 else {"replace": True}
"""Keyword arguments of `ConfigStore.store` for a name that may be there already."""

register_resolver: Callable[..., None] = getattr(OmegaConf, "register_new_resolver" if IS_1_3 else "register_resolver")
"""The function that makes a name known to OmegaConf's interpolations."""


def yaml_loader() -> Any:
    """Return the class with which OmegaConf loads YAML; each call makes one."""
    return importlib.import_module("omegaconf._utils" if IS_1_3 else "omegaconf._yaml").get_yaml_loader()
