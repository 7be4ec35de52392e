"""Structured configs whose numbers are read as where a config is constructed in Python: `trainer.max_steps=1e3` is
1000, and the text "1000" is refused."""

from __future__ import annotations

import typing
from typing import Any

from omegaconf import DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf
from omegaconf.base import Container
from omegaconf.errors import ValidationError

from xlstm_hydra.codec import MISSING, Flags, read_scalar

_LOSSLESS = Flags(lossless=True)
_WORDS = ("nan", "inf", "-inf")
"""The floats that JSON holds as text, and so do saved configs."""


class IntegralNode(IntegerNode):
    """An integer of a config, or an integral float. OmegaConf's own accepts text and no float at all."""

    def _validate_and_convert_impl(self, value: Any) -> int:
        if _is_resolved(self, value):
            return super()._validate_and_convert_impl(value)
        return _read(int, value, "Integer")

    def __deepcopy__(self, memo: dict[int, Any]) -> IntegralNode:
        copied = IntegralNode()
        self._deepcopy_impl(copied, memo)
        return copied


class RealNode(FloatNode):
    """A float of a config. OmegaConf's own accepts text."""

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
    """True for text that an interpolation gives: `${oc.env:SEED}` has no other values."""
    return isinstance(value, str) and node._is_interpolation()


def _read(kind: type, value: Any, name: str) -> Any:
    number = read_scalar(kind, value, _LOSSLESS)
    if number is MISSING:
        raise ValidationError(f"Value '$VALUE' of type '$VALUE_TYPE' could not be converted to {name}")
    return number


def structured(schema: type) -> DictConfig:
    """The node of a dataclass as `OmegaConf.structured` makes it, but for its numbers."""
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
            # OmegaConf makes the node of every new element from its type, so that `load` has to check these.
            child._metadata.element_type, child._metadata.ref_type = Any, typing.List[Any]  # noqa: UP006
