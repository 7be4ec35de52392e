"""OmegaConf extensions, and compatibility with Hydra 1.3 and 1.4.

Number nodes follow the rules of our config classes instead of OmegaConf's: for an integer field, `1e3` is accepted
as 1000, and the string "1000" is rejected.
"""

from __future__ import annotations

import copy
import importlib
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, cast

from hydra import __version__
from hydra.errors import HydraException
from omegaconf import DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf
from omegaconf.base import Container, Node
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import YAMLError

from xlstm_hydra.codec import MISSING, Flags, read_scalar
from xlstm_hydra.configs import RunConfig

REFUSED = (HydraException, OmegaConfBaseException, YAMLError, ValueError, AssertionError)
"""Exceptions that Hydra, OmegaConf and PyYAML raise for user errors during composition."""

IS_1_3 = tuple(map(int, __version__.split(".")[:2])) < (1, 4)

VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_1_3 else {}
"""Keyword arguments for `hydra.main` and `hydra.initialize`. Hydra 1.3 warns if `version_base` is not set, Hydra 1.4 if
it is set."""

REPLACE: dict[str, Any] = {} if IS_1_3 else {"replace": True}
"""Keyword arguments for `ConfigStore.store` that allow it to replace an existing config."""

register_resolver: Callable[..., None] = getattr(OmegaConf, "register_new_resolver" if IS_1_3 else "register_resolver")
"""OmegaConf's function for registering a resolver. Its name depends on the version."""

_LOSSLESS = Flags(lossless=True)
_WORDS = ("nan", "inf", "-inf")
"""Floats that JSON cannot represent. Saved configs store them as strings."""


def yaml_loader() -> Any:
    """Return the class that OmegaConf uses to load YAML. Each call creates a new class."""
    return importlib.import_module("omegaconf._utils" if IS_1_3 else "omegaconf._yaml").get_yaml_loader()


class IntegralNode(IntegerNode):
    """Integer node that accepts integral floats but no strings. OmegaConf's `IntegerNode` accepts strings but no
    floats."""

    def _validate_and_convert_impl(self, value: Any) -> int:
        if _is_resolved(self, value):
            return super()._validate_and_convert_impl(value)
        return _read(int, value, "Integer")

    def __deepcopy__(self, memo: dict[int, Any]) -> IntegralNode:
        copied = IntegralNode()
        self._deepcopy_impl(copied, memo)
        return copied


class RealNode(FloatNode):
    """Float node that does not accept strings, unlike OmegaConf's `FloatNode`."""

    def _validate_and_convert_impl(self, value: Any) -> float:
        if _is_resolved(self, value) or (isinstance(value, str) and value in _WORDS):
            return super()._validate_and_convert_impl(value)
        return _read(float, value, "Float")

    def __deepcopy__(self, memo: dict[int, Any]) -> RealNode:
        copied = RealNode()
        self._deepcopy_impl(copied, memo)
        return copied


_NODES: dict[Any, Any] = {IntegerNode: IntegralNode, FloatNode: RealNode}


def _is_resolved(node: Any, value: Any) -> bool:
    """True for a string that an interpolation resolved to: `${oc.env:SEED}` always returns a string."""
    return isinstance(value, str) and node._is_interpolation()


def _read(kind: type, value: Any, name: str) -> Any:
    number = read_scalar(kind, value, _LOSSLESS)
    if number is MISSING:
        raise ValidationError(f"Value '$VALUE' of type '$VALUE_TYPE' could not be converted to {name}")
    return number


def structured(schema: type) -> DictConfig:
    """Make a config node from a dataclass, like `OmegaConf.structured`, but with `IntegralNode` and `RealNode`."""
    node = OmegaConf.structured(schema)
    _read_numbers(node)
    return node


def _read_numbers(node: Container) -> None:
    content = node.__dict__["_content"]
    if not isinstance(content, dict):
        return
    for child in content.values():
        if type(child) in _NODES:
            child.__class__ = _NODES[type(child)]
        elif isinstance(child, DictConfig):
            _read_numbers(child)
        elif isinstance(child, ListConfig) and child._metadata.element_type is int:
            # OmegaConf would convert new elements with its own IntegerNode. As Any, they are checked by `load`.
            child._metadata.element_type, child._metadata.ref_type = Any, typing.List[Any]  # noqa: UP006


def copy_config(cfg: DictConfig) -> DictConfig:
    """Return a copy of a config that shares no mutable state with the original, faster than `copy.deepcopy`."""
    return _copy(cfg, cfg._get_parent())


def _copy(node: Any, parent: Any) -> Any:
    new = object.__new__(type(node))
    state = new.__dict__
    state.update(node.__dict__)
    state["_parent"], state["_flags_cache"] = parent, None
    state["_metadata"] = _copy_metadata(state["_metadata"])
    content = state.get("_content")
    if content is None:  # a single value, or a container that is null
        return new
    if isinstance(content, dict):
        state["_content"] = {key: _copy(child, new) for key, child in content.items()}
    elif isinstance(content, list | tuple):
        state["_content"] = type(content)(_copy(child, new) for child in content)
    elif isinstance(content, Node):  # a union
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


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the unresolved value of every leaf in a config."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict) or not plain:
        if path:
            yield path, plain
        return
    for key, value in plain.items():
        yield from leaves(value, (*path, str(key)))


def nested(path: tuple[str, ...], value: Any) -> DictConfig:
    """Return a config that contains only `value`, at `path`."""
    for key in reversed(path):
        value = {key: value}
    return cast(DictConfig, OmegaConf.create(value))


def refusal(cfg: Any, other: Any) -> Exception | None:
    """Return the error that would be raised by merging `other` into `cfg`; None if they can be merged."""
    for path, value in leaves(other):
        if empties(cfg, path, value):
            return ValidationError(f"{path[0]} cannot be null")
    try:
        copy_config(cfg).merge_with(copy_config(other))
    except (OmegaConfBaseException, *REFUSED) as error:
        return error
    return None


def empties(cfg: Any, path: tuple[str, ...], value: Any) -> bool:
    """True if a value sets a whole required group to null, which OmegaConf accepts but `RunConfig` does not."""
    if value is not None or len(path) != 1 or path[0] not in (*RunConfig.__dataclass_fields__, "hydra"):
        return False
    is_optional = type(None) in typing.get_args(typing.get_type_hints(RunConfig).get(path[0]))
    return not is_optional and isinstance(cfg.get(path[0]), DictConfig)
