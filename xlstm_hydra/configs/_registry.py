"""Classes that metadata may refer to: those of this package, and those that the user's Python program allows. A file
can never allow a class."""

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
"""Prefix of the dotted paths of the classes in this package."""

ENTRY_POINTS = "xlstm_hydra.models"
"""Entry-point group with which an installed package allows its modules. The value of each entry point is a module
name."""

WAY_OUT = (
    "In Python, call xlstm_hydra.metadata.register_model_class with the class, or allow_modules with its module. "
    f"An installed package can allow its modules with entry points of the group {ENTRY_POINTS}."
)
"""Fix for a class that is not allowed."""

_allowed: dict[str, type] = {}
_prefixes: set[str] = set()


def register_model_class(cls: type, *config_classes: type) -> type:
    """Allow metadata to refer to your own model class and its config class. Can be used as a decorator.

    Args:
        cls: the Flax class. The class that annotates its field `config` is also allowed.
        config_classes: additional config classes to allow."""
    annotated = config_class_of(cls)
    for allowed in (cls, *([annotated] if annotated else []), *config_classes):
        _allowed[dotted(allowed)] = allowed
    for config_class in (*([annotated] if annotated else []), *config_classes):
        register_class(config_class)
    return cls


def allow_modules(prefix: str) -> None:
    """Allow metadata to refer to the classes defined in the module `prefix` or its submodules, but not to classes that
    these modules import from elsewhere. Reading metadata then imports the modules that it refers to."""
    if not all(part.isidentifier() for part in prefix.split(".")):
        raise ValueError(f"{prefix!r} is not a module name: expected a dotted name such as my_project.models")
    _prefixes.add(prefix)


def config_class_of(cls: type) -> type | None:
    """Return the class that annotates the field `config` of a model class, or None if it cannot be found."""
    hint = next((parent.__annotations__["config"] for parent in cls.__mro__ if "config" in _annotations(parent)), None)
    if isinstance(hint, str):  # from __future__ import annotations
        hint = vars(sys.modules[cls.__module__]).get(hint)
    return hint if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__") else None


def _annotations(cls: type) -> Mapping[str, Any]:
    return cls.__dict__.get("__annotations__", {})


def refused_model_class(name: Any, classes: Mapping[str, type]) -> list[Problem]:
    """Return a list with one problem if metadata may not refer to this model class, otherwise an empty list. `classes`
    are additional allowed classes, by dotted path."""
    if not isinstance(name, str):
        return [Problem.about("", f"expected the dotted path of a class, got {show(name)}")]
    ours = families()
    if name in ours or is_allowed(name, classes):
        return []
    text = f"{show(name)} is not a model class that this program allows"
    return [Problem.about("", text, f"{nearest(name, [*ours, *_allowed, *classes])} {WAY_OUT}")]


def refused_config(class_path: str, config: Any) -> Iterator[Problem]:
    """Check that the config of a model class in this package is an instance of its config class or of a subclass."""
    expected = families().get(class_path)
    if expected and getattr(config, "flax_class", None) != class_path:
        text = f"{show(class_path)} takes a {expected.__name__}, but model_config is a {type(config).__name__}"
        yield Problem.about("model_class", text)


def families() -> dict[str, type[ConfigDict]]:
    """Return the config classes of the model families in this package, by the dotted path of the model class."""
    named = {getattr(cls, "flax_class", ""): cls for cls in OPTIONS.values()}
    return {path: named[path] for path in sorted(filter(None, named))}


def refused_tags(content: Any, classes: Mapping[str, type]) -> Iterator[Problem]:
    """Yield a problem for every `_type_` in the content that refers to a class that is not allowed. `classes` are
    additional allowed classes, by dotted path."""
    from xlstm_hydra.formats import path_part

    if isinstance(content, list):
        for index, item in enumerate(content):
            yield from (problem.at(f"[{index}]") for problem in refused_tags(item, classes))
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key == TAG and not _may_be_named(value, classes):
            text = f"{show(value)} is not a class that this program allows"
            yield Problem.about("", text, WAY_OUT).at(TAG)
        yield from (problem.at(path_part(key)) for problem in refused_tags(value, classes))


def allowed_class(name: str) -> type | None:
    """Return the class at a dotted path if the program allows it, otherwise None."""
    return _allowed.get(name) or _imported(name)


def _may_be_named(tag: Any, classes: Mapping[str, type]) -> bool:
    """True if a `_type_` value refers to a class of this package, a built-in type, or an allowed class."""
    return isinstance(tag, str) and ("." not in tag or tag.startswith(OURS) or is_allowed(tag, classes))


def is_allowed(name: str, classes: Mapping[str, type]) -> bool:
    """True if a dotted path refers to a class that the program allows or that is in `classes`. The module of the class
    is imported only if the module is allowed."""
    return name in classes or allowed_class(name) is not None


@functools.cache
def _installed() -> frozenset[str]:
    """Return the names of the modules that installed packages allow."""
    from importlib.metadata import entry_points  # needed only for a name that is not ours

    return frozenset(entry.value for entry in entry_points(group=ENTRY_POINTS))


def _is_allowed_module(module: str) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in _prefixes | _installed())


def _imported(name: str) -> type | None:
    """Import a class from an allowed module, or return None."""
    module, _, attribute = name.rpartition(".")
    if not _is_allowed_module(module):
        return None
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        found = getattr(sys.modules.get(module) or importlib.import_module(module), attribute, None)
    except Exception as failed:  # whatever the user's module raises
        from xlstm_hydra.formats import error

        text = f"the import of {module}, which this program allows, failed: {type(failed).__name__}: {failed}"
        raise error("model", text) from failed
    if not isinstance(found, type) or not _is_allowed_module(found.__module__):
        return None
    if hasattr(found, "__dataclass_fields__"):
        register_class(found)
    return found
