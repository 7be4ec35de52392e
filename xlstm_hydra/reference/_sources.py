"""Read the source code of the config classes: docstrings under fields, and the bodies of functions and methods."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path


@cache
def module_tree(module: str) -> ast.Module:
    """Return the parsed source of an imported module."""
    file = sys.modules[module].__file__
    assert file is not None
    return ast.parse(Path(file).read_text(encoding="utf-8"))


@cache
def class_node(cls: type) -> ast.ClassDef:
    """Return the syntax tree of a class definition."""
    return next(
        node
        for node in module_tree(cls.__module__).body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )


@cache
def methods_of(cls: type) -> dict[str, ast.FunctionDef]:
    """Return the methods that a class itself defines, by name."""
    return {node.name: node for node in class_node(cls).body if isinstance(node, ast.FunctionDef)}


@cache
def functions_of(module: str) -> dict[str, ast.FunctionDef]:
    """Return the functions of a module by name."""
    return {node.name: node for node in module_tree(module).body if isinstance(node, ast.FunctionDef)}


def own_classes(cls: type) -> Iterator[type]:
    """Yield the class and its base classes in method resolution order, restricted to classes of this package."""
    yield from (base for base in cls.__mro__ if base.__module__.startswith("xlstm_hydra."))


def meaning_of(cls: type, name: str) -> str:
    """Return the docstring under a field as one paragraph. If several base classes document the field, the first in
    method resolution order is used."""
    return next((docs[name] for base in own_classes(cls) if name in (docs := _docstrings(base))), "")


@cache
def _docstrings(cls: type) -> dict[str, str]:
    docs = {}
    for node, following in pairwise(class_node(cls).body):
        match node, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def paragraph_of(cls: type) -> str:
    """Return the first paragraph of a class docstring as one line."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def first_sentence(text: str) -> str:
    """Return the first sentence of a paragraph."""
    for place, letter in enumerate(text):
        is_end = letter == "." and text[place + 1 : place + 2] in ("", " ")
        if is_end and text.count("(", 0, place) == text.count(")", 0, place) and text[place + 2 : place + 3] != "(":
            return text[: place + 1]
    return text
