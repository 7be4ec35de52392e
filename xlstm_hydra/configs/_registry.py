"""Which classes metadata may name: ours, and what the user's program has allowed in Python. A file allows nothing."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from xlstm_hydra.codec import TAG, dotted, register_class
from xlstm_hydra.problems import Problem, nearest, show

from ._config_dict import OPTIONS, ConfigDict

OURS = "xlstm_hydra."
"""What the dotted paths of our own classes begin with."""

ENTRY_POINTS = "xlstm_hydra.models"
"""Group of the entry points by which an installed package allows its modules: their values are module names."""

WAY_OUT = (
    "In Python, call xlstm_hydra.metadata.register_model_class with the class, or allow_modules with its module; "
    f"an installed package allows its modules by entry points of the group {ENTRY_POINTS}."
)
"""What to do about a class that may not be named."""

_allowed: dict[str, type] = {}
_prefixes: set[str] = set()


def register_model_class(cls: type, *config_classes: type) -> type:
    """Allow metadata to name a model class of yours, and the class of its config. Usable as a decorator.

    Args:
        cls: the Flax class. The class that annotates its field `config` is allowed with it.
        config_classes: further config classes.
    """
    annotated = config_class_of(cls)
    for allowed in (cls, *([annotated] if annotated else []), *config_classes):
        _allowed[dotted(allowed)] = allowed
    for config_class in (*([annotated] if annotated else []), *config_classes):
        register_class(config_class)
    return cls


def allow_modules(prefix: str) -> None:
    """Allow metadata to name the classes that a module, or one below it, defines. What they import from elsewhere
    is not allowed with them. Reading then imports the modules that are named."""
    if not all(part.isidentifier() for part in prefix.split(".")):
        raise ValueError(f"{prefix!r} is no module: expected a dotted name such as my_project.models")
    _prefixes.add(prefix)


def config_class_of(cls: type) -> type | None:
    """The class that annotates the field `config` of a model class; None where it is not known."""
    hint = next((parent.__annotations__["config"] for parent in cls.__mro__ if "config" in _annotations(parent)), None)
    if isinstance(hint, str):  # from __future__ import annotations
        hint = vars(sys.modules[cls.__module__]).get(hint)
    return hint if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__") else None


def _annotations(cls: type) -> Mapping[str, Any]:
    return cls.__dict__.get("__annotations__", {})


def refused_model_class(name: Any, classes: Mapping[str, type]) -> list[Problem]:
    """Why metadata may not name this model class (of ours, or of the user's): one problem, or none."""
    if not isinstance(name, str):
        return [Problem.about("", f"expected the dotted path of a class, got {show(name)}")]
    ours = families()
    if name in ours or is_allowed(name, classes):
        return []
    text = f"{show(name)} is no model class that this program has allowed"
    return [Problem.about("", text, f"{nearest(name, [*ours, *_allowed, *classes])} {WAY_OUT}")]


def refused_config(class_path: str, config: Any) -> Iterator[Problem]:
    """The rule that a model class of ours has a config of its own class, or of one that the user derived from it."""
    expected = families().get(class_path)
    if expected and getattr(config, "flax_class", None) != class_path:
        text = f"{show(class_path)} takes a {expected.__name__}, but model_config is a {type(config).__name__}"
        yield Problem.about("model_class", text)


def families() -> dict[str, type[ConfigDict]]:
    """The configs of our model families, by the dotted path of the model class."""
    named = {getattr(cls, "flax_class", ""): cls for cls in OPTIONS.values()}
    return {path: named[path] for path in sorted(filter(None, named))}


def refused_tags(content: Any, classes: Mapping[str, type]) -> Iterator[Problem]:
    """A problem for every `_type_` in the content that names a class which is not allowed."""
    from xlstm_hydra.formats import path_part

    if isinstance(content, list):
        for index, item in enumerate(content):
            yield from (problem.at(f"[{index}]") for problem in refused_tags(item, classes))
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key == TAG and not _may_be_named(value, classes):
            text = f"{show(value)} is no class that this program has allowed"
            yield Problem.about("", text, WAY_OUT).at(TAG)
        yield from (problem.at(path_part(key)) for problem in refused_tags(value, classes))


def allowed_class(name: str) -> type | None:
    """The class of this dotted path, if the program has allowed it."""
    return _allowed.get(name) or _imported(name)


def _may_be_named(tag: Any, classes: Mapping[str, type]) -> bool:
    """True if a tag is one of ours, a plain type, or an allowed class."""
    return isinstance(tag, str) and ("." not in tag or tag.startswith(OURS) or is_allowed(tag, classes))


def is_allowed(name: str, classes: Mapping[str, type]) -> bool:
    """True if a dotted path leads to a class that the program has allowed. Imports its module only if that is
    allowed by prefix."""
    return name in classes or allowed_class(name) is not None


@functools.cache
def _installed() -> frozenset[str]:
    """The modules that installed packages allow."""
    from importlib.metadata import entry_points  # only a name that is not ours needs it

    return frozenset(entry.value for entry in entry_points(group=ENTRY_POINTS))


def _is_allowed_module(module: str) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in _prefixes | _installed())


def _imported(name: str) -> type | None:
    """The class of an allowed module."""
    module, _, attribute = name.rpartition(".")
    if not _is_allowed_module(module):
        return None
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        found = getattr(sys.modules.get(module) or importlib.import_module(module), attribute, None)
    except Exception as failed:  # whatever the user's module raises
        from xlstm_hydra.formats import error

        text = f"{module}, whose import this program has allowed, fails: {type(failed).__name__}: {failed}"
        raise error("model", text) from failed
    if not isinstance(found, type) or not _is_allowed_module(found.__module__):
        return None
    if hasattr(found, "__dataclass_fields__"):
        register_class(found)
    return found
