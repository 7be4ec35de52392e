"""Output of `xlstm-hydra --info NAME`, which describes a field, a group or an option."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from xlstm_hydra._printable import wrapped
from xlstm_hydra.problems import ConfigError, Problem, either, near_name, nearest
from xlstm_hydra.synonyms import same_meaning

from ._catalog import Catalog, FieldEntry
from ._option_files import OptionFile
from ._sources import first_sentence, paragraph_of


def info(name: str, folders: Sequence[Path] = (), width: int = 100) -> str:
    """Return a description of a field, a group or an option.

    Args:
        name: a field, a group or an option, such as parallel.fsdp_axis_size, parallel or parallel=fsdp.
        folders: config folders of the user, whose options are listed too.
        width: width of the terminal in columns.

    Raises:
        ConfigError: there is no field, group or option with this name.
    """
    catalog = Catalog(folders)
    key, equals, value = name.partition("=")
    group = _group_of(catalog, key)
    if group is not None:
        lines = _option_lines(catalog, group, value, width) if equals else _group_lines(catalog, group, width)
        return "\n".join(lines)
    parent = _group_of(catalog, key.rpartition(".")[0])
    entries = catalog.fields(parent).get(key) if parent else None
    if entries is None:
        raise ConfigError([_unknown(catalog, key)])
    return "\n".join(_field_lines(catalog, key, entries, width))


def _group_of(catalog: Catalog, name: str) -> str | None:
    """Return the group with this name, or None. The name may contain dots instead of slashes."""
    return next((group for group in catalog.groups if name in (group, group.replace("/", "."))), None)


def _unknown(catalog: Catalog, key: str) -> Problem:
    keys = [*catalog.groups, *(key for group in catalog.groups for key in catalog.fields(group))]
    parent, _, name = key.rpartition(".")
    own = [known for known in keys if known.rpartition(".")[0] == parent]
    same = same_meaning(name, own) or same_meaning(name, keys)
    of_hydra = key.startswith("hydra.")
    near = same if 0 < len(same) < 5 else list(filter(None, [near_name(key, keys, cutoff=0.8 if of_hydra else 0.6)]))
    if of_hydra and not near:
        return Problem.about(
            key, "not a setting of this package", "xlstm-hydra --cfg hydra prints Hydra's own settings."
        )
    fix = f"Did you mean {either(near)}?" if near else f"Groups: {', '.join(catalog.groups)}."
    return Problem.about(key, "no such group or field", fix)


def merged(entries: Sequence[FieldEntry], attribute: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the distinct texts of an attribute of a field, each with the names of the options that share the text. If
    a text applies to all options, no names are listed."""
    owners: dict[str, list[str]] = {}
    for entry in entries:
        found = getattr(entry, attribute)
        for text in found if isinstance(found, tuple) else [found]:
            owners.setdefault(text, []).append(entry.owner_text)
    return [(text, () if len(names) == len(entries) else tuple(names)) for text, names in owners.items() if text]


FIELD_LINES = {
    "type": "type_text",
    "default": "default_text",
    "allowed": "allowed_text",
    "rules": "rules",
    "effect": "effect",
}
"""Labels of the lines printed about a field, with the attribute of `FieldEntry` that contains the text."""


def with_owners(text: str, owners: Iterable[str]) -> str:
    """Return a text followed by option names in parentheses."""
    return f"{text} ({', '.join(owners)})" if owners else text


def _field_lines(catalog: Catalog, key: str, entries: list[FieldEntry], width: int) -> Iterator[str]:
    yield key
    for text, owners in merged(entries, "meaning"):
        yield from wrapped(with_owners(text, owners), width, "  ")
    yield ""
    rows = [
        (label, with_owners(text, owners))
        for label, attribute in FIELD_LINES.items()
        for text, owners in merged(entries, attribute)
    ]
    if owners := only_in(catalog, key, entries):
        rows.append(("only in", ", ".join(owners)))
    rows += [("set by", f"{value}: {by}") for value, by in set_by_texts(catalog, key)]
    yield from _table(_without_repeats(rows), width)


def _without_repeats(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the rows with the label removed if it is the same as in the previous row."""
    return [*rows[:1], *(("" if last[0] == row[0] else row[0], row[1]) for last, row in pairwise(rows))]


def only_in(catalog: Catalog, key: str, entries: Sequence[FieldEntry]) -> list[str]:
    """Return the names of the schemas that have a field. Empty if all schemas of the group have it."""
    group = _group_of(catalog, key.rpartition(".")[0])
    is_everywhere = not entries[0].owner or group is None or len(entries) == len(catalog.classes(group))
    return [] if is_everywhere else [entry.owner for entry in entries]


def set_by_texts(catalog: Catalog, key: str) -> list[tuple[str, str]]:
    """Return every value to which an option sets a field, with a text that lists the options and the comment in their
    files."""
    texts = []
    for value, options in catalog.set_by(key).items():
        names: dict[str, list[str]] = {}
        for option in options:
            names.setdefault(option.group or "the config", []).append(option.name)
        chosen = "; ".join(f"{group}={', '.join(found)}" for group, found in names.items())
        texts.append((value.text, chosen + (f" ({value.comment})" if value.comment else "")))
    return texts


def _group_lines(catalog: Catalog, group: str, width: int) -> Iterator[str]:
    yield group
    yield from wrapped(catalog.summary(group), width, "  ")
    yield ""
    yield f"Options ({group}=OPTION, default: {catalog.default_of(group)}):"
    yield from _table([(name, about_option(catalog, option)) for name, option in catalog.options[group].items()], width)
    if found := catalog.fields(group):
        yield ""
        yield f"Fields ({group.replace('/', '.')}.FIELD=VALUE):"
        yield from _field_table(catalog, group, found, width)


def _field_table(catalog: Catalog, group: str, found: dict[str, list[FieldEntry]], width: int) -> Iterator[str]:
    rows = []
    for entries in found.values():
        first = entries[0]
        owners = only_in(catalog, first.key, entries)
        defaults = ", ".join(text for text, _ in merged(entries, "default_text"))
        rows.append((first.name, first.type_text, defaults, with_owners(first_sentence(first.meaning), owners)))
    yield from _table(rows, width)


def about_option(catalog: Catalog, option: OptionFile) -> str:
    """Return a line that describes an option: the comment in its file, the values that it sets, or the docstring of its
    config class."""
    if option.comment:
        return first_sentence(option.comment)
    cls = catalog.classes(option.group).get(option.schema)
    values = [f"{key}={_short(value.text)}" for key, value in option.values.items() if key not in _PLUMBING]
    if cls and option.schema != option.group and not values:
        return first_sentence(paragraph_of(cls))
    return ", ".join(values) or "the defaults"


_PLUMBING = ("model_class", "config_class", "parallel", "_target_")
"""Keys that connect an option to its config class. They are not listed among the values of the option."""


def _short(text: str) -> str:
    return "(computed)" if text.startswith("${") else text


def _option_lines(catalog: Catalog, group: str, name: str, width: int) -> Iterator[str]:
    options = catalog.options[group]
    if name not in options:
        raise ConfigError([Problem({group: name}, "no such option", nearest(name, options))])
    option = options[name]
    yield option.typed
    yield from wrapped(option.comment, width, "  ")
    yield ""
    cls = catalog.classes(group).get(option.schema)
    about = [("file", str(option.file))]
    about += [("class", f"xlstm_hydra.configs.{cls.__name__}: {first_sentence(paragraph_of(cls))}")] if cls else []
    about += [("chooses", f"{other}={choice}") for other, choice in option.choices.items()]
    yield from _table(about, width)
    yield ""
    yield from _values_lines(catalog, option, _PLUMBING if cls else (), width)


def _values_lines(catalog: Catalog, option: OptionFile, hidden: Sequence[str], width: int) -> Iterator[str]:
    rows = []
    for key, value in option.whole_values().items():
        if key.rpartition(".")[2] in hidden:
            continue
        parent = _group_of(catalog, key.rpartition(".")[0])
        entries = catalog.fields(parent).get(key, []) if parent else []
        entries = [entry for entry in entries if entry.owner in (option.schema, "")] or entries
        default = ", ".join(text for text, _ in merged(entries, "default_text"))
        if value.text != default:
            notes = [default if default in ("", "required") else f"default: {default}", value.comment]
            rows.append((key, value.text, "; ".join(filter(None, notes))))
    yield "Values that differ from the defaults:" if rows else "All values are the defaults."
    yield from _table(rows, width)
    if any("${" in row[1] for row in rows):
        yield "Values with ${...} are computed when the config is composed."


def _table(rows: Sequence[tuple[str, ...]], width: int) -> Iterator[str]:
    """Yield the lines of a table with aligned columns. The last column is wrapped; on a narrow terminal, it is printed
    below the other columns."""
    count = len(rows[0]) if rows else 0
    sizes = [max(min(len(row[column]), 30) for row in rows) for column in range(count - 1)]
    indent = 2 + sum(size + 2 for size in sizes)
    for row in rows:
        cells = [f"{text:<{size}}  " for text, size in zip(row[:-1], sizes, strict=True)]
        if width - indent < 30:
            yield from wrapped("  ".join(row[:-1]), width, "  ", "  ")
            yield from wrapped(row[-1], width, "      ")
        elif len("".join(cells)) + 2 > indent:
            yield f"  {''.join(cells)}".rstrip()
            yield from wrapped(row[-1], width, " " * min(indent, 6))
        else:
            yield from _first_line(f"  {''.join(cells)}", wrapped(row[-1], width, " " * indent))


def _first_line(head: str, lines: list[str]) -> Iterator[str]:
    """Yield the lines of the last column. The first line follows the text `head` of the other columns."""
    yield (head + lines[0][len(head) :]).rstrip() if lines else head.rstrip()
    yield from lines[1:]
