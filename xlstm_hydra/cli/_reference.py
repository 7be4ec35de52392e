"""The flags `--info NAME`, except for the names that Hydra's own `--info` accepts, and `--schema [DIR]`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from xlstm_hydra.problems import ConfigError, Problem

from ._complete_word import OF_HYDRA

INFO_FLAGS = ("--info", "-i")
SCHEMA_FLAG = "--schema"
SEARCH_PATH = "hydra.searchpath="


def shows_reference(arguments: Sequence[str]) -> bool:
    """Print the field reference for `--info NAME`, or write the JSON schemas for `--schema`. Return False if the
    arguments contain neither.

    Raises:
        ConfigError: the name is unknown, or there are arguments that cannot be combined with the flag.
    """
    for place, text in enumerate(arguments):
        flag, equals, value = text.partition("=")
        if flag not in (*INFO_FLAGS, SCHEMA_FLAG):
            continue
        rest = [*arguments[:place], *arguments[place + 1 :]]
        if not equals and rest[place:] and not rest[place].startswith("-"):
            value = rest.pop(place)
        if flag == SCHEMA_FLAG:
            _write_schemas(value, rest)
            return True
        if value and value not in OF_HYDRA:
            _print_info(value, rest)
            return True
    return False


def _print_info(name: str, rest: Sequence[str]) -> None:
    from xlstm_hydra.reference import info

    columns = shutil.get_terminal_size((100, 24)).columns
    print(info(name, _own_folders(rest), min(max(columns, 40), 120)))


def _write_schemas(folder: str, rest: Sequence[str]) -> None:
    """Write the JSON schemas to a folder, and print their paths. Without a folder, print the paths of the schemas
    included in this installation."""
    from xlstm_hydra.reference import schema_dir, write_schemas

    _refuse_others(rest, SCHEMA_FLAG)
    if folder:
        write_schemas(Path(folder).expanduser())
    for file in sorted((Path(folder).expanduser().absolute() if folder else schema_dir()).glob("*.json")):
        print(file)


def _own_folders(rest: Sequence[str]) -> list[Path]:
    """Return the config folders in the arguments next to `--info`, from `--config-dir`, `--config-path` and
    `hydra.searchpath`."""
    from xlstm_hydra.hydra import parse_known_flags, search_path

    args = parse_known_flags(rest)
    _refuse_others([text for text in args.overrides if not text.startswith(SEARCH_PATH)], INFO_FLAGS[0])
    paths = [item.path for item in search_path(args).get_path() if item.provider in ("command-line", "main")]
    paths += [path for text in args.overrides for path in _listed(text.removeprefix(SEARCH_PATH))]
    folders = [Path(path.removeprefix("file://")) for path in paths if path and "pkg://" not in path]
    return [folder for folder in folders if folder.is_dir()]


def _listed(text: str) -> list[str]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []


def _refuse_others(others: Sequence[str], flag: str) -> None:
    if others:
        raise ConfigError([Problem.about(others[0], f"cannot be given with {flag}", "Remove it.")])
