"""Import of the classes whose dotted paths are in a config. This imports the user's own modules and JAX."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from xlstm_hydra.problems import ConfigError, Unread, nearest

from .model import ModelConfig


def locate_class(path: Any, key: str) -> Any:
    """Import the class at a dotted path.

    Args:
        path: the dotted path, as written by the user.
        key: the config key of the path, for messages.

    Raises:
        ConfigError: there is no class at this path."""
    module_name, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name) if module_name else None
    except ImportError as error:
        missing = f"cannot be imported: {error}"
        raise ConfigError([Unread({key: path}, missing, "Install the module, or change to its folder.")]) from None
    except AttributeError:
        module = importlib.import_module(module_name)
        known = [item for item, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError([Unread({key: path}, f"{module_name} has no {name}", nearest(name, known))]) from None
    if not isinstance(found, type):
        raise ConfigError([Unread({key: path}, "must be the dotted path of a class, such as my_package.MyModel")])
    return found


def resolve_classes(model: ModelConfig) -> ModelConfig:
    """Return the model config with its model class imported if it was a dotted path. This imports JAX.

    Raises:
        ConfigError: there is no class at this path."""
    if not isinstance(model.model_class, str):
        return model
    return dataclasses.replace(model, model_class=locate_class(model.model_class, "model.model_class"))
