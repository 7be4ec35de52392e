"""Hydra's config search path, and checks that its folders and packages exist."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import SearchPathException
from hydra.plugins.config_source import ConfigSource
from omegaconf import ListConfig, OmegaConf

from xlstm_hydra import conf_dir as _conf_dir
from xlstm_hydra.problems import ConfigError, Problem, nearest, show

from ._hydra_part import SEARCH_PATH
from ._omegaconf import REFUSED

_CHECKPOINT = "ckpt://"
_INTERNAL = ("structured", "xlstm")
"""URL schemes for internal use, which are not suggested to users."""


def search_path(args: Any) -> ConfigSearchPath:
    """Return the config search path for `--config-path` and `--config-dir`.

    Args:
        args: parsed command-line arguments.

    Raises:
        ConfigError: a folder or package named by a flag does not exist.
    """
    found = create_automatic_config_search_path(_conf_dir.__file__, None, args.config_path)
    main = next((one.path for one in found.get_path() if one.provider == "main"), None)
    if main is not None and (problem := _missing("--config-path", args.config_path, main)):
        raise ConfigError([problem])
    if args.config_dir is not None:
        folder = f"file://{os.path.abspath(args.config_dir)}"
        if problem := _missing("--config-dir", args.config_dir, folder):
            raise ConfigError([problem])
        found.prepend("command-line", folder, SearchPathQuery(provider="schema"))
    return found


def check_primary(args: Any, default: str) -> None:
    """Check that the primary config exists, and that the sources in its `hydra.searchpath` exist.

    Args:
        args: parsed command-line arguments.
        default: name of the built-in primary config.

    Raises:
        ConfigError: a folder named by a flag, the primary config, or a source does not exist.
    """
    if args.config_name is None and args.config_path is None and args.config_dir is None:
        return  # the built-in config
    from ._own_files import OwnFile, in_file, name_of, path_of  # takes 10 ms, so only imported if needed
    from ._yaml_file import line_of, read_yaml

    name = args.config_name or default
    repository: Any = ConfigLoaderImpl(search_path(args)).repository
    source = repository._find_object_source(name, ObjectType.CONFIG)
    if source is None:
        known = [option for option in repository.get_group_options("") if not option.startswith("_")]
        fix = f"{nearest(name, known)} To add a folder with your own configs, use --config-dir=DIR."
        raise ConfigError([Problem({"--config-name": name}, "there is no such config", fix)])
    if not is_own(source):
        return
    try:
        loaded = source.load_config(name)
        added = OmegaConf.select(loaded.config, SEARCH_PATH)
    except (*REFUSED, OSError):
        return  # Hydra reads the file again, and its errors are reported then
    if isinstance(added, ListConfig) and (problems := [*source_problems([*added])]):
        root, _ = read_yaml(path_of(name, source).read_bytes())
        file = OwnFile(name, name_of(name, source))
        where = file.at(line_of(root, SEARCH_PATH.split(".")))
        raise ConfigError(in_file(problem, where) for problem in problems)


def has_own_files(loader: ConfigLoader, overrides: Iterable[str] = ()) -> bool:
    """True if the user's own config files may be composed: the search path has sources other than those of xlstm_hydra
    and Hydra, or an override adds a source."""
    is_added = any(text.lstrip("+").startswith(f"{SEARCH_PATH}=") for text in overrides)
    return is_added or any(map(is_own, loader.get_sources()))


def is_own(source: ConfigSource) -> bool:
    """True for the user's own config sources, as opposed to those of xlstm_hydra and Hydra."""
    return source.scheme() in ("file", "pkg") and source.provider != "hydra"


def source_problems(sources: Sequence[Any]) -> Iterator[Problem]:
    """Yield a `Problem` for each source in `hydra.searchpath` that does not exist.

    Raises:
        ConfigError: a `ckpt://` source cannot be read.
    """
    for source in sources:
        if not isinstance(source, str):
            yield Problem.about(SEARCH_PATH, f"every entry must be a folder or a URL, got {show(source)}")
        elif source.startswith(_CHECKPOINT):
            from ._from_checkpoint import SavedOptions  # takes 20 ms, so only imported if needed

            SavedOptions.at(source.removeprefix(_CHECKPOINT), SEARCH_PATH)
        elif problem := _missing(SEARCH_PATH, source, source):
            yield problem


def _missing(key: str, typed: str, source: str) -> Problem | None:
    """Return a `Problem` if the folder or package `source` does not exist.

    Args:
        key: flag or key that names the source, for messages.
        typed: the value as the user typed it, for messages.
        source: path or URL of the source.
    """
    scheme, separator, path = source.partition("://")
    if not separator or scheme == "file":
        path = path if separator else source
        if os.path.isdir(path):
            return None
        rule = "is a file, not a folder" if os.path.isfile(path) else "the folder does not exist"
        return Problem({key: typed}, rule, _way_out(key, typed, path))
    Plugins.instance()  # registers the URL schemes
    types = SourcesRegistry.instance().types
    if scheme not in types:
        known = ", ".join(f"{name}://" for name in sorted(types) if name not in _INTERNAL)
        return Problem({key: typed}, f"{scheme}:// is not a supported URL scheme", f"Supported: folders, {known}.")
    try:
        is_there = types[scheme](key, source).available()
    except (SearchPathException, ImportError, ValueError):
        is_there = False
    fix = "The package must be importable and contain an __init__.py." if scheme == "pkg" else ""
    return None if is_there else Problem({key: typed}, f"there is no such {_KINDS.get(scheme, 'config source')}", fix)


_KINDS = {"pkg": "package"}


def _way_out(key: str, typed: str, path: str) -> str:
    if key == "--config-path" and not os.path.isabs(typed):
        return (
            f"Relative paths are resolved from {Path(path).parent}. Write an absolute path, or use "
            f"--config-dir={typed} to add the folder to the built-in configs."
        )
    return f"The current folder is {os.getcwd()}."
