"""Copies of composed configs: what `copy.deepcopy` gives, in a tenth of the time."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

from omegaconf import DictConfig
from omegaconf.base import Node


def copy_config(cfg: DictConfig) -> DictConfig:
    """A config that shares nothing with this one that can change."""
    return _copy(cfg, cfg._get_parent())


def _copy(node: Any, parent: Any) -> Any:
    new = object.__new__(type(node))
    state = new.__dict__
    state.update(node.__dict__)
    state["_parent"], state["_flags_cache"] = parent, None
    state["_metadata"] = _copy_metadata(state["_metadata"])
    content = state.get("_content")
    if content is None:  # of a single value, or of a container that is null
        return new
    if isinstance(content, dict):
        state["_content"] = {key: _copy(child, new) for key, child in content.items()}
    elif isinstance(content, list | tuple):
        state["_content"] = type(content)(_copy(child, new) for child in content)
    elif isinstance(content, Node):  # of a union
        state["_content"] = _copy(content, new)
    return new


def _copy_metadata(metadata: Any) -> Any:
    new = object.__new__(type(metadata))
    state = new.__dict__
    state.update(metadata.__dict__)
    flags, cache = state["flags"], state["resolver_cache"]
    state["flags"] = None if flags is None else flags.copy()
    state["resolver_cache"] = copy.deepcopy(cache) if cache else defaultdict(dict)
    return new
