"""Extract the rules of config classes (bounds, allowed values, and sentences) from the code that checks them.

Methods whose names end in `rules` are interpreted symbolically, without running them: assignments, loops over known
values, and calls of other rules. An expression that depends on the values of a config is unknown, and is written as
`...` in a sentence.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Any

from xlstm_hydra.problems import show

from ._sources import functions_of, methods_of, own_classes

_PLACEHOLDER = re.compile(r"\{(/?[\w.]+)\}")
_UNKNOWN = re.compile(
    r"(?<! to)(?<! process)(?<! kind)(?<! block)(?:,|:|, not| =| of|; the devices are)? \.\.\.|\(\.\.\.\)"
)
"""Matches parts of a sentence that depend on values and can be removed."""

_PACKAGE = "xlstm_hydra.configs"


@dataclass
class Rules:
    """The rules of one class. Keys with a dot are absolute; all other keys are fields of the class."""

    sentences: dict[tuple[tuple[str, ...], str], None] = field(default_factory=dict)
    """Ordered set of the rules. Each rule consists of the keys that it involves and its text."""

    bounds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Numeric bounds by field, as JSON Schema keywords and values."""

    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """All allowed values of a field, by field."""

    def add(self, keys: Iterable[str], text: str) -> None:
        """Add a rule that involves some keys."""
        keys = tuple(dict.fromkeys(key.removeprefix("/") for key in keys))
        text = _PLACEHOLDER.sub(lambda match: f"{{{match[1].removeprefix('/')}}}", _UNKNOWN.sub("", text))
        if keys and text:
            self.sentences[keys, text] = None

    def whole(self, group: str) -> list[tuple[tuple[str, ...], str]]:
        """Return all sentences for a class of this group, with absolute keys."""
        return [
            (tuple(_whole(key, group) for key in keys), _PLACEHOLDER.sub(lambda match: _whole(match[1], group), text))
            for keys, text in self.sentences
        ]


def _whole(key: str, group: str) -> str:
    return key if "." in key else f"{group}.{key}"


@cache
def rules_of(cls: type) -> Rules:
    """Return the rules that the methods of a class check."""
    reader = _Reader(cls, Rules())
    names = dict.fromkeys(name for base in own_classes(cls) for name in methods_of(base) if name.endswith("rules"))
    for name in names:
        reader.method(name, _Scope({}))
    return reader.found


@dataclass(frozen=True)
class _Scope:
    """Names in a function: `known` names with their values, and `unknown` names with the expressions that they are
    assigned, whose values are unknown."""

    known: dict[str, Any]
    unknown: dict[str, ast.expr | None] = field(default_factory=dict)
    module: Mapping[str, Any] = field(default_factory=dict)
    owner: type = object
    depth: int = 0

    def value(self, node: ast.expr) -> tuple[Any, ...]:
        """Return the value of an expression as a tuple with one element. Empty: the value is unknown."""
        names = {name: value for name, value in self.module.items() if name not in self.unknown} | self.known
        if any(
            isinstance(part, ast.Name) and part.id not in names and part.id in self.unknown for part in ast.walk(node)
        ):
            return ()
        try:
            return (eval(compile(ast.Expression(node), "<rule>", "eval"), names),)  # our own source, not input
        except Exception:  # it depends on an unknown value
            return ()

    def having(self, values: Mapping[str, Any]) -> _Scope:
        """Return a copy in which these names have known values."""
        unknown = {name: node for name, node in self.unknown.items() if name not in values}
        return replace(self, known={**self.known, **values}, unknown=unknown)

    def without(self, target: ast.expr) -> _Scope:
        """Return a copy in which the names in the target of a loop are unknown."""
        names = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
        known = {name: value for name, value in self.known.items() if name not in names}
        return replace(self, known=known, unknown={**self.unknown, **dict.fromkeys(names)})

    def bind(self, name: str, node: ast.expr | None) -> None:
        """Assign an expression to a name."""
        found = self.value(node) if node is not None else ()
        self.known.pop(name, None)
        self.unknown[name] = node
        self.take(name, found)

    def take(self, name: str, found: tuple[Any, ...]) -> None:
        """Bind `name` to the value in `found`. If `found` is empty, the value is unknown: `name` stays as it is."""
        for value in found:
            self.known[name] = value
            del self.unknown[name]


@dataclass
class _Reader:
    cls: type
    found: Rules

    def method(self, name: str, scope: _Scope, call: ast.Call | None = None, after: type | None = None) -> None:
        """Interpret a method of the class. With `after`, start the search for the method behind this base class, as
        `super()` does."""
        classes = [*own_classes(self.cls)]
        classes = classes[classes.index(after) + 1 :] if after in classes else classes
        for base in classes:
            if name in methods_of(base):
                self.function(methods_of(base)[name], base.__module__, scope, call, base)
                return

    def function(
        self, node: ast.FunctionDef, module: str, scope: _Scope, call: ast.Call | None, owner: type = object
    ) -> None:
        """Interpret a function with the arguments of a call."""
        if scope.depth > 6:
            return
        inner = _Scope({}, {}, vars(sys.modules[module]), owner, scope.depth + 1)
        names = [argument.arg for argument in node.args.args]
        given = dict(zip(names[owner is not object :], call.args, strict=False)) if call else {}
        given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg} if call else {}
        defaults = dict(zip(reversed(names), reversed(node.args.defaults), strict=False))
        keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        defaults |= {argument.arg: default for argument, default in keywords if default}
        for name in [*names, *(argument.arg for argument in node.args.kwonlyargs)]:
            value = (
                scope.value(given[name]) if name in given else inner.value(defaults[name]) if name in defaults else ()
            )
            if value and name not in ("self", "config") and (name in given or call is not None):
                inner.known[name] = value[0]
            else:
                inner.unknown[name] = None
        self.block(node.body, inner)

    def block(self, statements: Iterable[ast.stmt], scope: _Scope) -> None:
        """Interpret statements. Both branches of a condition are followed."""
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    scope.bind(name, value)
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                    for target, value in zip(targets, values, strict=False):
                        if isinstance(target, ast.Name):
                            scope.bind(target.id, value)
                case ast.For(target=target, iter=iterable, body=body):
                    self.loop(target, iterable, body, scope)
                case ast.Expr(value=value):
                    self.calls(value, scope)
                case _:
                    for name in ("body", "orelse", "finalbody"):
                        self.block(getattr(statement, name, ()), scope)
                    for handler in getattr(statement, "handlers", ()):
                        self.block(handler.body, scope)

    def loop(self, target: ast.expr, iterable: ast.expr, body: list[ast.stmt], scope: _Scope) -> None:
        """Interpret a loop once for each known value of its target, or once if they are unknown."""
        for inner in self.iterations(target, iterable, scope) or [scope.without(target)]:
            self.block(body, inner)

    def iterations(self, target: ast.expr, iterable: ast.expr, scope: _Scope) -> list[_Scope]:
        """Return the scope of each iteration of a loop over known values, or over a dictionary with known keys."""
        found: list[Any] = [*chain.from_iterable(scope.value(iterable))]
        match target, iterable:
            case ast.Tuple(elts=[ast.Name(), *_]), ast.Call(func=ast.Attribute(value=mapping, attr="items")) if (
                not found
            ):
                assert isinstance(target.elts[0], ast.Name)
                name = target.elts[0].id
                return [scope.without(target).having({name: key}) for key in self.keys(mapping, scope)]
        names = [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]
        values = [value if isinstance(target, ast.Tuple) else (value,) for value in found]
        return [scope.without(target).having(dict(zip(names, value, strict=False))) for value in values]

    def keys(self, node: ast.expr | None, scope: _Scope) -> list[str]:
        """Return the known keys of a dictionary whose values may be unknown."""
        match node:
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return [
                    key for name, value in pairs for key in (scope.value(name) if name else self.keys(value, scope))
                ]
            case ast.BinOp(left=left, right=right) | ast.BoolOp(values=[left, right]):
                return [*self.keys(left, scope), *self.keys(right, scope)]
            case ast.Name(id=name) if name in scope.unknown:
                return self.keys(scope.unknown[name], scope.without(node))
            case ast.DictComp(key=key, generators=[ast.comprehension(target=target, iter=iterable)]):
                turns = self.iterations(target, iterable, scope)
                return [found for inner in turns for found in inner.value(key)]
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                return self.returned_keys(name)
        return [str(key) for value in (scope.value(node) if node else ()) if isinstance(value, dict) for key in value]

    def returned_keys(self, name: str) -> list[str]:
        """Return the known keys of the dictionary that a method returns."""
        for base in own_classes(self.cls):
            match methods_of(base).get(name):
                case ast.FunctionDef(body=[*_, ast.Return(value=value)]):
                    return self.keys(value, _Scope({}, {}, vars(sys.modules[base.__module__]), base))
        return []

    def text(self, node: ast.expr | None, scope: _Scope) -> str:
        """Return the text of an expression, with `...` for unknown parts."""
        match node:
            case ast.JoinedStr(values=parts):
                return "".join(self.text(part, scope) for part in parts)
            case ast.FormattedValue(value=ast.IfExp(test=test, body=ast.Constant(value=""))) if not scope.value(test):
                return ""  # such as " and finite"
            case ast.FormattedValue(value=value):
                return "".join(map(str, scope.value(value))) or self.text(value, scope) or "..."
            case ast.Name(id=name) if name in scope.unknown:
                return self.text(scope.unknown[name], scope.without(node))
            case ast.BinOp(left=left, right=right):
                return self.text(left, scope) + self.text(right, scope)
            case ast.IfExp(test=ast.Compare(ops=[ast.Is()]), orelse=other) if not scope.value(node):
                return self.text(other, scope)
            case ast.IfExp(body=body) if not scope.value(node):
                return self.text(body, scope)
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(joint)), attr="join"), args=[argument]):
                return joint.join(self.texts(argument, scope))
        return "".join(str(value) for value in scope.value(node) if isinstance(value, str)) if node else ""

    def texts(self, node: ast.expr, scope: _Scope) -> list[str]:
        """Return the texts that a generator expression or list comprehension yields."""
        match node:
            case ast.Name(id=name) if name in scope.unknown and (list_of := scope.unknown[name]):
                return self.texts(list_of, scope.without(node))
            case (
                ast.GeneratorExp(elt=element, generators=[ast.comprehension(target=target, iter=iterable)])
                | ast.ListComp(elt=element, generators=[ast.comprehension(target=target, iter=iterable)])
            ):
                return [self.text(element, inner) for inner in self.iterations(target, iterable, scope)]
        return []

    def calls(self, value: ast.expr, scope: _Scope) -> None:
        """Interpret the calls whose results an expression yields."""
        match value:
            case ast.Yield(value=ast.Call() as call) | ast.YieldFrom(value=ast.Call() as call):
                self.call(call, scope)
            case ast.YieldFrom(value=ast.GeneratorExp(elt=ast.Call() as call)):
                self.call(call, scope)

    def call(self, node: ast.Call, scope: _Scope) -> None:
        """Interpret a call of another rule, or record the rule in a call of `Problem`."""
        match node.func:
            case ast.Name(id=name) if handler := getattr(self, f"_on_{name}", None):
                handler(node, scope)
            case ast.Name(id=name) if getattr(scope.module.get(name), "__module__", "").startswith(_PACKAGE):
                module = scope.module[name].__module__
                if name in functions_of(module):
                    self.function(functions_of(module)[name], module, scope, node)
            case ast.Attribute(value=ast.Name(id="Problem"), attr="about"):
                keys = chain.from_iterable([scope.value(node.args[0])])
                self.found.add([str(key) for key in keys], self.text(node.args[1], scope))
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                self.method(name, scope, node, scope.owner)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self.method(name, scope, node)

    def _on_Problem(self, node: ast.Call, scope: _Scope) -> None:  # noqa: N802 (the name of the class)
        self.found.add(self.keys(node.args[0], scope), self.text(node.args[1], scope))

    def _on_at_least(self, node: ast.Call, scope: _Scope) -> None:
        is_above = any(keyword.arg == "above" for keyword in node.keywords)
        self._bound(node, scope, "exclusiveMinimum" if is_above else "minimum")

    def _on_below(self, node: ast.Call, scope: _Scope) -> None:
        is_inclusive = any(keyword.arg == "inclusive" for keyword in node.keywords)
        self._bound(node, scope, "maximum" if is_inclusive else "exclusiveMaximum")

    def _bound(self, node: ast.Call, scope: _Scope, keyword: str) -> None:
        for low in scope.value(node.args[1]):
            for key in _arguments(node.args[2:], scope):
                self.found.bounds.setdefault(key, {})[keyword] = low

    def _on_one_of(self, node: ast.Call, scope: _Scope) -> None:
        optional = next((scope.value(word.value) for word in node.keywords if word.arg == "optional"), (False,))
        for key in scope.value(node.args[1]):
            for options in scope.value(node.args[2]):
                self.found.choices[key] = (*options, *([None] if optional == (True,) else []))

    def _on_own_name(self, node: ast.Call, scope: _Scope) -> None:
        name = getattr(self.cls, "name", None)
        if isinstance(name, str):
            self.found.choices["name"] = (name,)

    def _on_unused(self, node: ast.Call, scope: _Scope) -> None:
        because = scope.value(node.args[2])
        value = scope.value(node.args[3])
        condition = f"{{{because[0]}}}={show(value[0])}" if value else f"this {{{because[0]}}}"
        for key in scope.value(node.args[1]):
            self.found.add([key], f"has no effect with {condition}")


def _arguments(nodes: Iterable[ast.expr], scope: _Scope) -> Iterator[str]:
    """Yield the known values of positional arguments, including starred arguments."""
    for node in nodes:
        if isinstance(node, ast.Starred):
            yield from chain.from_iterable(scope.value(node.value))
        else:
            yield from scope.value(node)
