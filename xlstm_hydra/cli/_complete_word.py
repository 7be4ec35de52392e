"""Completions of a single word of a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._known_keys import KnownKeys

RUN, FOLDER, FILE, CONFIG, KEY, NAME = "RUN", "FOLDER", "FILE", "CONFIG", "KEY", "NAME"
"""Kinds of flag values whose completions are looked up, as opposed to a fixed list of values."""

FLAGS: dict[str, str] = {
    "--cfg": "job hydra all",
    "--config-dir": FOLDER,
    "--config-name": CONFIG,
    "--config-path": FOLDER,
    "--experimental-rerun": FILE,
    "--from": RUN,
    "--help": "",
    "--hydra-help": "",
    "--info": NAME,
    "--lenient": "",
    "--multirun": "",
    "--package": KEY,
    "--resolve": "",
    "--run": "",
    "--schema": FOLDER,
    "--shell-completion": "install=bash install=zsh install=fish",
    "--trust": "",
    "--version": "",
}
"""Flags of `xlstm-hydra`, each mapped to its values, separated by spaces, or to their kind. Empty: no value."""

SHORT = {
    "-c": "--cfg",
    "-cd": "--config-dir",
    "-cn": "--config-name",
    "-cp": "--config-path",
    "-h": "--help",
    "-i": "--info",
    "-m": "--multirun",
    "-p": "--package",
    "-r": "--run",
    "-sc": "--shell-completion",
}
"""Short forms of flags."""

METADATA: dict[str, dict[str, str]] = {
    name: {"--help": "", "--json": "", "--lenient": "", **({} if name == "check" else {"--no-verify": ""}), **more}
    for name, more in {
        "show": {},
        "overrides": {},
        "diff": {},
        "check": {},
        "import": {"--format": "xlstm_jax hf"},
        "export": {"--format": "hf", "--one-document-per-row": ""},
    }.items()
}
"""Subcommands of `xlstm-metadata`, each with its flags and their values, as in `FLAGS`."""

OF_HYDRA = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""Arguments of Hydra's own `--info`."""

_FOLDER_FLAGS = ("--config-dir", "--config-path")
_RUN_KEYS = ("resume", "checkpoint.restore", "checkpoint.init_from", "task.checkpoint")
_PATH_KEY = re.compile(r".*(path|dir|folder|file)")
_PREFIX = re.compile(r"\+{1,2}|~|")
_SOURCE = re.compile(r"file://([^],'\"]+)")
_STEP = re.compile(r"(?:checkpoint_)?(\d+)")


def metadata_completions(before: Sequence[str], word: str) -> Iterable[str]:
    """Return the completions of a word of `xlstm-metadata`.

    Args:
        before: words between the name of the command and this word.
        word: text of the word, up to the cursor.
    """
    command = next((text for text in before if text in METADATA), None)
    if command is None:
        return _matching(METADATA, word)
    if kind := METADATA[command].get(before[-1]):
        return _matching(kind.split(), word)
    return _matching(METADATA[command], word) if word.startswith("-") else _runs(word)


def word_completions(before: Sequence[str], word: str) -> Iterable[str]:
    """Return the completions of a word of `xlstm-hydra`.

    Args:
        before: words between the name of the command and this word.
        word: text of the word, up to the cursor.
    """
    flag = SHORT.get(before[-1], before[-1]) if before else ""
    if FLAGS.get(flag):
        return _values(FLAGS[flag], before, word)
    if word.startswith("--") and "=" in word:
        name, _, value = word.partition("=")
        return (f"{name}={found}" for found in _values(FLAGS.get(name, ""), before, value))
    if word.startswith("-"):
        return _matching((*FLAGS, *SHORT), word)
    return _override(_known(before), word)


def _values(kind: str, before: Sequence[str], word: str) -> Iterable[str]:
    """Return the completions of a flag's value, given its kind or its values separated by spaces (see `FLAGS`)."""
    match kind:
        case "RUN":
            return _runs(word)
        case "FOLDER" | "FILE":
            return _paths(word, folders_only=kind == FOLDER)
        case "CONFIG":
            return _matching(_known(before).config_names(), word)
        case "NAME" if "=" in word:
            return _override(_known(before), word)
        case "NAME":
            keys = _keys(_known(before), word)
            groups = [text for text in keys if "." not in text[:-1]]
            return [*_matching(OF_HYDRA, word), *(text.rstrip("=.") for text in keys), *groups]
        case "KEY":
            return (text.rstrip("=.") for text in _keys(_known(before), word))
        case _:
            return _matching(kind.split(), word)


def _matching(names: Iterable[str], word: str) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _known(before: Sequence[str]) -> KnownKeys:
    """Return the known keys and options, given the words before the cursor, such as `--config-dir`."""
    from ._known_keys import KnownKeys

    typed, values = _split(before)
    resumed = next((text.removeprefix("resume=") for text in typed if text.startswith("resume=")), "")
    run = values.get("--from") or resumed
    named = [values[flag] for flag in _FOLDER_FLAGS if values.get(flag)]
    named += [path for text in typed if text.startswith("hydra.searchpath=") for path in _SOURCE.findall(text)]
    return KnownKeys(
        folders=tuple(Path(os.path.expanduser(path)) for path in named),
        config_name=values.get("--config-name") or "config",
        typed=tuple(typed),
        saved=_run_folder(run) if run else None,
    )


def _split(before: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Split words into a list of overrides, and a dictionary of flags with their values."""
    typed: list[str] = []
    values: dict[str, str] = {}
    rest = iter(before)
    for text in rest:
        name, equals, value = text.partition("=")
        flag = SHORT.get(name, name)
        if not text.startswith("-"):
            typed.append(text)
        else:
            values[flag] = value if equals else next(rest, "") if FLAGS.get(flag) else ""
    return typed, values


# ---- overrides


def _override(known: KnownKeys, word: str) -> Iterable[str]:
    match = _PREFIX.match(word)
    prefix = match[0] if match else ""
    key, equals, value = word[len(prefix) :].partition("=")
    if not equals:
        return (prefix + text.rstrip("=" if prefix == "~" else "") for text in _keys(known, key))
    return (f"{prefix}{key}={text}" for text in _values_of_key(known, key, value))


def _keys(known: KnownKeys, text: str) -> list[str]:
    """Return the groups and keys that start with `text`. Keys and groups with options end with `=`, nodes with `.`, and
    groups that contain groups with `/`."""
    if "/" in text:
        return _matching(_group_names(known, text.rpartition("/")[0]), text)
    parent, dot, _ = text.rpartition(".")
    if dot:
        nodes = known.node(parent).items()
        names = (f"{parent}.{name}{'.' if isinstance(at, dict) else '='}" for name, at in nodes if name[:1] != "_")
        return _matching(names, text)
    others = ("resume=", "resume_sweep=", *(f"{name}." for name in known.with_keys()))
    return sorted(_matching((*_group_names(known, ""), *others), text))


def _group_names(known: KnownKeys, parent: str) -> Iterator[str]:
    for name, has_options in known.groups(parent).items():
        if has_options:
            yield f"{name}="
        if known.groups(name):
            yield f"{name}/"


def _values_of_key(known: KnownKeys, key: str, value: str) -> Iterable[str]:
    """Return the completions of a key's value or a group's option. After a comma, values already listed are skipped."""
    if key in _RUN_KEYS:
        return _runs(value)
    if key == "resume_sweep":
        return _paths(value, folders_only=True)
    listed, comma, last = value.rpartition(",")
    names = known.options(key.partition("@")[0]) or _values_of_leaf(known, key)
    if not names and (_PATH_KEY.fullmatch(key) or value.startswith((".", "/", "~"))):
        return _paths(value)
    return [f"{listed}{comma}{name}" for name in _matching(names, last) if name not in listed.split(",")]


def _values_of_leaf(known: KnownKeys, key: str) -> Iterable[str]:
    if key == "task.device":
        return known.options("device")
    leaf = known.leaf(key)
    return leaf.values() if leaf else ()


# ---- paths


def _paths(text: str, *, folders_only: bool = False) -> Iterator[str]:
    """Yield the paths of files and folders that start with `text`. Folders end with a slash."""
    start = text[: text.rfind("/") + 1]
    for item in _items(os.path.expanduser(start) or "."):
        is_shown = not item.name.startswith(".") or text[len(start) :].startswith(".")
        if item.name.startswith(text[len(start) :]) and is_shown and (item.is_dir() or not folders_only):
            yield f"{start}{item.name}{'/' if item.is_dir() else ''}"


def _runs(text: str) -> Iterator[str]:
    """Yield the folders whose path starts with `text`. Paths end with a slash, except those of run folders. If `text`
    is a run folder, yield the checkpoints of the run instead, as `RUN@STEP`."""
    run, at, step = text.rpartition("@")
    run, step = (run, step) if at and _steps(run) else (text, "")
    if steps := _steps(run):
        yield from (f"{run}@{found}" for found in steps if str(found).startswith(step))
        return
    for path in _paths(text, folders_only=True):
        yield path.rstrip("/") if _steps(path) else path


def _run_folder(source: str) -> Path:
    run, _, step = source.strip("'\"").rpartition("@")
    return Path(os.path.expanduser(run if run and step.isdigit() else source))


def _steps(run: str) -> list[int]:
    """Return the steps of the complete checkpoints in a run folder, in ascending order."""
    names = (item.name for item in _items(os.path.join(os.path.expanduser(run), "checkpoints")) if item.is_dir())
    return sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))


def _items(folder: str) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda item: item.name)
    except OSError:
        return []
