"""Read one of the user's YAML files: find errors with line and column, check the package header, and locate keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf, grammar_parser
from omegaconf.errors import GrammarParseError

from xlstm_hydra.errors import first_line
from xlstm_hydra.problems import Problem

from ._omegaconf import yaml_loader
from ._unreadable import INTERPOLATION_FORM

BOM = b"\xef\xbb\xbf"

_TAG = "tag:yaml.org,2002:"
_KINDS = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value", yaml.MappingNode: "a mapping"}
_WORDS = (
    (r"found character '\\t'", "tabs are not allowed here; indent with spaces"),
    (r"found character (\S+) that cannot start any token", r"a value cannot start with \1; quote it"),
    (
        r"mapping values are not allowed here",
        "a key is not allowed here; check the indentation, and quote text that contains ': '",
    ),
    (r"could not find expected ':'", "expected `key: value`"),
    (r"expected <block end>.*", "the indentation does not match the lines above"),
    (r"expected '?,'? or '?(.)'?, but got.*", r"expected a comma or \1"),
    (r"found unexpected end of stream", "a quote is not closed"),
    (r"but found another document", "the file has two documents; remove the line ---"),
)
"""Patterns of PyYAML's error messages, each with a clearer message."""


_ENTRY = ("an entry of defaults must be a name or a single `group: option`", "For example `- override /model: tiny`.")
_NO_KEYS = ("null", "bool", "timestamp", "binary")
"""Types that YAML may give to unquoted keys, and that are not allowed for config keys."""

RECIPE = "# @package _global_"
_HEADER = re.compile(r"\s*#\s*@package\s+(\S+)\s*")
_HEADER_LINE = re.compile(r"\s*#\s*@")
_SIMILAR = re.compile(r"\s*#.*(@|_global_|\bpac?k?age?\b)", re.IGNORECASE)


class Fault(NamedTuple):
    """An error at a position in a file."""

    rule: str
    fix: str = ""
    line: int | None = None
    """Line number, from 1. None: the whole file."""
    column: int | None = None

    @property
    def position(self) -> str:
        """Position as text to append to the file name, such as `, line 3, column 5`."""
        parts = {"line": self.line, "column": self.column}
        return "".join(f", {name} {number}" for name, number in parts.items() if number is not None)


def read_yaml(data: bytes) -> tuple[yaml.Node | None, list[Fault]]:
    """Return the root node of a YAML file (None: empty or invalid syntax), and all errors found in the file."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"the file is not UTF-8 text: it contains the byte 0x{data[error.start]:02x}"
        return None, [Fault(rule, "Save it as UTF-8.", data[: error.start].count(b"\n") + 1)]
    loader = yaml_loader()
    try:
        root = loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        return None, [_syntax(_in_python(text) or error)]
    except yaml.YAMLError as error:  # a character that YAML does not allow
        position = getattr(error, "position", 0)
        rule = f"the file contains a character that YAML does not allow: {text[position : position + 1]!r}"
        return None, [Fault(rule, "", text[:position].count("\n") + 1)]
    faults = [] if root is None else [*_root_faults(root), *_faults(root, loader.yaml_constructors, set(), ())]
    return root, faults or _unloadable(text)


def _in_python(text: str) -> yaml.MarkedYAMLError | None:
    """Return the error that PyYAML's Python parser raises, if any. OmegaConf 2.4 uses libyaml, whose errors are less
    detailed."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        return error
    return None


def _syntax(error: yaml.MarkedYAMLError) -> Fault:
    words = error.problem or error.context or "cannot be read"
    for pattern, plain in _WORDS:
        if match := re.match(pattern, words):
            words = match.expand(plain)
            break
    mark, start = error.problem_mark or error.context_mark, error.context_mark
    if start is not None and mark is not None and start.line != mark.line:
        words += f"; the enclosing value starts on line {start.line + 1}"
    return Fault(words, "", *(() if mark is None else (mark.line + 1, mark.column + 1)))


def _at(node: yaml.Node, rule: str, fix: str = "") -> Fault:
    return Fault(rule, fix, node.start_mark.line + 1, node.start_mark.column + 1)


def _root_faults(root: yaml.Node) -> Iterator[Fault]:
    if not isinstance(root, yaml.MappingNode):
        yield _at(root, f"a config must be a mapping, got {_KINDS[type(root)]}", "Write `key: value` lines.")
        return
    node = next((value for key, value in root.value if key.value == "defaults"), None)
    if node is None or not isinstance(node, yaml.SequenceNode):
        if node is not None:
            yield _at(node, f"defaults must be a list, got {_KINDS[type(node)]}", "Write `- group: option` lines.")
        return
    yield from (_at(item, *_ENTRY) for item in node.value if not _is_entry(item))
    yield from _word_faults([_name_of(item) for item in node.value if _is_entry(item)])


def _is_entry(item: yaml.Node) -> bool:
    if not isinstance(item, yaml.MappingNode):
        return _is_text(item)
    if len(item.value) != 1 or not _is_text(item.value[0][0]):
        return False
    options = item.value[0][1]
    many = options.value if isinstance(options, yaml.SequenceNode) else [options]
    return all(_is_text(one) or (one is options and one.tag == f"{_TAG}null") for one in many)


def _name_of(item: yaml.Node) -> yaml.ScalarNode:
    return item.value[0][0] if isinstance(item, yaml.MappingNode) else item  # pyright: ignore[reportReturnType]


def _word_faults(names: list[yaml.ScalarNode]) -> Iterator[Fault]:
    """Yield an error for each unknown keyword before an entry of the defaults list, which Hydra ignores, and for each
    duplicate `_self_`."""
    own = [name for name in names if name.value == "_self_"]
    yield from (
        _at(name, f"duplicate _self_, first listed on line {own[0].start_mark.line + 1}", "Remove one of them.")
        for name in own[1:]
    )
    for name in names:
        *words, last = name.value.split()
        for word in words:
            if word not in ("override", "optional"):
                rule = f"expected `override` or `optional` before {last}, got {word!r}"
                yield _at(name, rule, f"Write `override {last}: ...`.")


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str"


def _faults(node: yaml.Node, tags: Any, seen: set[int], above: tuple[int, ...]) -> Iterator[Fault]:
    """Yield the errors in a node and its descendants, each once.

    Args:
        node: the node.
        tags: tags that OmegaConf's YAML loader supports.
        seen: ids of nodes already checked, which are skipped if aliases refer to them again.
        above: ids of the ancestors of `node`.
    """
    if id(node) in above:
        yield _at(node, "an alias cannot refer to a node that contains it")
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.tag not in tags and node.tag not in (f"{_TAG}merge", f"{_TAG}value"):
        yield _at(node, f"the tag {node.tag.replace(_TAG, '!!')} is not supported", "Write the value without a tag.")
    if isinstance(node, yaml.MappingNode):
        yield from _key_faults(node)
    if isinstance(node, yaml.ScalarNode) and _is_text(node) and "${" in node.value:
        try:
            grammar_parser.parse(node.value)
        except GrammarParseError:
            yield _at(node, f"{node.value!r} is not a valid interpolation", INTERPOLATION_FORM)
    for child in _children(node):
        yield from _faults(child, tags, seen, (*above, id(node)))


def _key_faults(node: yaml.MappingNode) -> Iterator[Fault]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            yield _at(key, f"a key must be a string, got {_KINDS[type(key)]}")
        elif (kind := key.tag.removeprefix(_TAG)) in _NO_KEYS:
            yield _not_text(key, kind)
        elif key.value in lines:
            yield _at(key, f"duplicate key {key.value}, first set on line {lines[key.value]}", "Remove one of them.")
        else:
            lines[key.value] = key.start_mark.line + 1


def _not_text(key: yaml.ScalarNode, kind: str) -> Fault:
    if not key.value:
        return _at(key, "no key before the colon")
    value = str(key.value.lower() in ("true", "yes", "on")).lower() if kind == "bool" else kind
    return _at(key, f"YAML reads the key {key.value} as {value}", f'For text, quote it: "{key.value}".')


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _unloadable(text: str) -> list[Fault]:
    """Return errors that only occur when YAML nodes are converted to values."""
    try:
        OmegaConf.create(yaml.load(text, Loader=yaml_loader()))
    except yaml.MarkedYAMLError as error:
        return [_syntax(error)]
    except Exception as error:  # any YAML constructor or OmegaConf node may raise
        return [Fault(first_line(error))]
    return []


def line_of(root: yaml.Node | None, path: Sequence[str]) -> int | None:
    """Return the line number, from 1, of the key at a path; None if the file does not have the key. Keys in the file
    may contain dots."""
    if not path:
        return 1 if root is None else root.start_mark.line + 1
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        names = str(key.value).split(".")
        if names == list(path[: len(names)]):
            rest = path[len(names) :]
            found = line_of(value, rest) if rest else key.start_mark.line + 1
            if found is not None:
                return found
    return None


def entry_line(root: yaml.Node | None, number: int) -> int | None:
    """Return the line number, from 1, of a defaults list entry, given its index."""
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "defaults" and isinstance(value, yaml.SequenceNode) and number < len(value.value):
            return value.value[number].start_mark.line + 1
    return None


def header_problem(data: bytes, package: str, is_empty: bool) -> Problem:
    """Return the `Problem` for a file whose package is not a group of a run.

    Args:
        data: content of the file.
        package: package of the file: the path in the composed config where its values are placed.
        is_empty: True if the file has no values.
    """
    lines = data.removeprefix(BOM).decode("utf-8", "replace").splitlines()
    headers = {number: match[1] for number, line in enumerate(lines, 1) if (match := _HEADER.fullmatch(line))}
    if package in headers.values():
        text = f"the package header places the values under {package}, which is not part of a run config"
        return Problem({}, text, f"Write `{RECIPE}`, or name a group in the header.")
    fix = f"The first line must be `{RECIPE}`."
    if is_empty and not headers:
        return Problem({}, "the file has no values", fix)
    rule = f"the values are placed under {package}, which is not part of a run config"
    return Problem({}, f"{rule}{_reason(data, lines, headers)}", fix)


def header_faults(data: bytes) -> Iterator[Fault]:
    """Yield an error for each package header (`# @package ...`) that Hydra cannot parse."""
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not _HEADER_LINE.match(line):
            if line.strip():
                return
        elif len(line.strip().lstrip("#").split()) != 2:
            yield Fault(f"cannot read the header {line.strip()!r}", f"Write `{RECIPE}`.", number)


def _reason(data: bytes, lines: list[str], headers: dict[int, str]) -> str:
    """Return the reason why Hydra does not find a package header in the file, as text to append to a message."""
    if data.startswith(BOM) and headers:
        return "; a byte order mark (BOM) hides the package header, so save the file as UTF-8 without BOM"
    if headers:
        number = min(headers)
        return f"; the package header is on line {number}, but must be on the first line"
    for number, line in enumerate(lines, 1):
        if _SIMILAR.match(line):
            return f"; line {number} is not a package header: {line.strip()!r}"
    return "; the file has no package header" if any(line.strip() for line in lines) else ""
