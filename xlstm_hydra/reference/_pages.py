"""Markdown of the reference pages: one page for each config group, and the table of all groups."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ._catalog import Catalog, FieldEntry
from ._info import FIELD_LINES, about_option, merged, only_in, with_owners
from ._option_files import OptionFile, Value
from ._sources import first_sentence

_LITERAL = re.compile(r"(?<![\w`])((?:[\w.]+\.)+\w*_\w+|[\w/]+=(?:\(computed\)|[\w.\[\]-]+))")
"""Matches keys and assignments in a sentence. They are formatted as code, because Markdown would interpret their
underscores."""


def page_names(catalog: Catalog) -> dict[str, str]:
    """Return the file name of the page of each group that has fields or recipes, such as `hydra_launcher.md` for
    hydra/launcher."""
    with_recipes = [group for group in catalog.groups if any(one.is_global for one in catalog.options[group].values())]
    groups = [group for group in catalog.groups if group in with_recipes or catalog.fields(group)]
    return {group: f"{group.replace('/', '_')}.md" for group in groups}


def groups_table(catalog: Catalog) -> str:
    """Return the table of all groups with their options and defaults."""
    names = page_names(catalog)
    rows = []
    for group in names:
        options = ", ".join(f"`{name}`" for name in catalog.options[group])
        default = "" if catalog.default_of(group) == "null" else f"`{catalog.default_of(group)}`"
        rows.append((f"[`{group}`]({names[group]})", _cell(first_sentence(catalog.summary(group))), options, default))
    return "\n".join(_table(("group", "about", "options", "default"), rows))


def group_page(catalog: Catalog, group: str) -> str:
    """Return the page of a group, with its options and all properties of each field."""
    key = group.replace("/", ".")
    lines = [f"# {group}", "", _prose(catalog.summary(group)), ""]
    lines += [
        f"`{group}=OPTION` chooses an option; the default is `{catalog.default_of(group)}`.",
        "",
        "## Options",
        "",
    ]
    options = catalog.options[group].values()
    rows = [(f"`{option.name}`", _cell(_prose(about_option(catalog, option)))) for option in options]
    lines += _table(("option", "about"), rows)
    if fields := catalog.fields(group):
        lines += ["", "## Fields", "", f"`{key}.FIELD=VALUE` sets a field."]
        for name, entries in fields.items():
            lines += ["", *_field_lines(catalog, name, entries)]
    return "\n".join([*lines, ""])


def _field_lines(catalog: Catalog, key: str, entries: list[FieldEntry]) -> Iterator[str]:
    yield f"### `{key}`"
    yield ""
    for text, owners in merged(entries, "meaning"):
        yield _prose(with_owners(text, owners))
        yield ""
    for label, attribute in FIELD_LINES.items():
        found = merged(entries, attribute)
        if label in ("default", "allowed"):
            texts = [with_owners(f"`{text}`", owners) for text, owners in found]
        else:
            texts = [_prose(with_owners(text, owners)) for text, owners in found]
        yield from _item(label, texts)
    yield from _item("only in", [", ".join(f"`{name}`" for name in only_in(catalog, key, entries))])
    yield from _item("set by", [_set_by(value, options) for value, options in catalog.set_by(key).items()])


def _set_by(value: Value, options: list[OptionFile]) -> str:
    comment = f" ({_prose(value.comment)})" if value.comment else ""
    return f"`{value.text}`: {', '.join(f'`{option.typed}`' for option in options)}{comment}"


def _item(label: str, texts: list[str]) -> Iterator[str]:
    texts = [text for text in texts if text]
    if len(texts) == 1:
        yield f"- **{label}**: {texts[0]}"
    elif texts:
        yield f"- **{label}**:"
        yield from (f"    - {text}" for text in texts)


def _prose(text: str) -> str:
    """Convert a sentence to Markdown. Keys and assignments are formatted as code, and special characters are
    escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else _LITERAL.sub(r"`\1`", part.replace("*", r"\*").replace("<", "&lt;"))
        for part in parts
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
