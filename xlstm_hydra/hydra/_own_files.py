"""The YAML files that a user adds to ours: composed in spite of what is wrong with them, with a problem for each
mistake, and the file and line that a value comes from.

Hydra stops at the first mistake, and often reports neither file nor key. This is used once something is wrong.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xlstm_hydra.configs import Problem, RunConfig

from ._header import header_problem
from ._refusals import REFUSED, first_line, no_such_option, wrong_value
from ._yaml_file import Fault, entry_line, line_of, read_yaml

UNREADABLE = (*REFUSED, OSError, RecursionError)
"""What composing raises because of a file: also one that cannot be opened, or that leads back to itself."""

NO_SUCH_GROUP = "no such group"

_IN_FILE = re.compile(r"^In '?([^':\n]+)'?: (.*)", re.DOTALL)


@dataclass(frozen=True)
class FileProblem(Problem):
    """A problem with what stands in a file."""

    where: str = field(default="", kw_only=True)
    """The file, and the line if it is known."""

    def __str__(self) -> str:
        return f"{self.where}: {super().__str__()}"


def in_file(problem: Problem, where: str) -> FileProblem:
    """The same problem with its place."""
    values = {name: getattr(problem, name) for name in ("given", "rule", "fix", "idle", "prefix")}
    return FileProblem(**values, where=where)


@dataclass
class OwnFile:
    """A file of the user's."""

    option: str
    """Its name in Hydra's tree, such as `experiment/mine`."""
    name: str
    """Its path as the user knows it."""
    data: bytes
    root: yaml.Node | None
    result: ConfigResult | None = None

    def at(self, line: int | None) -> str:
        """The file and a line of it."""
        return self.name if line is None else f"{self.name}, line {line}"

    @property
    def group(self) -> str:
        """The group whose option it is."""
        return self.option.rpartition("/")[0]


class Placed(NamedTuple):
    """A file of the user's at its place in the config."""

    file: OwnFile
    package: tuple[str, ...]

    def line(self, key: str) -> int | None:
        """The line in which the file sets a key; None if it does not."""
        parts = tuple(key.split("."))
        depth = len(self.package)
        return line_of(self.file.root, parts[depth:]) if parts[:depth] == self.package else None


@dataclass
class Composed:
    """What could be composed."""

    cfg: DictConfig
    problems: list[Problem]
    lost: set[str]
    """Groups whose option could not be read."""
    wrong: set[str]
    """Keys whose value was dropped because it is wrong."""
    placed: list[Placed]
    """The files of the user's, in the order in which they were merged."""

    def locate(self, problem: Problem, typed: Collection[str]) -> Problem:
        """A problem with the file and line of the values that it is about, where they are in a file.

        Args:
            problem: about the composed config.
            typed: keys that the command line sets.
        """
        if isinstance(problem, FileProblem):
            return problem
        for key in (key for key in problem.keys if key not in typed):
            for placed in reversed(self.placed):
                if (line := placed.line(key)) is None:
                    continue
                if problem.rule == NO_SUCH_GROUP and placed.package:
                    return self.misplaced(placed)
                if problem.rule == NO_SUCH_GROUP and "." in key:
                    group, _, rest = key.partition(".")
                    problem = Problem.about(key, "a key in a file has no dots", f"Write {group}: {{{rest}: ...}}.")
                return in_file(problem, placed.file.at(line))
        return problem

    def misplaced(self, placed: Placed) -> Problem:
        """The problem with a file whose values are where nothing reads them."""
        problem = header_problem(placed.file.data, ".".join(placed.package), placed.file.root is None)
        return in_file(problem, placed.file.name)

    def files_at(self, package: str) -> Iterator[Placed]:
        """The files whose values are at a place."""
        return (placed for placed in self.placed if placed.package[:1] == (package,))


def own_sources(loader: ConfigLoader) -> list[ConfigSource]:
    """The folders and packages in the search path that are neither ours nor Hydra's."""
    return [source for source in loader.get_sources() if _is_own(source)]


def _is_own(source: ConfigSource) -> bool:
    return source.scheme() in ("file", "pkg") and source.provider != "hydra"


def compose_files(loader: ConfigLoader, config_name: str | None, overrides: Sequence[str]) -> Composed:
    """Compose a config, whatever is wrong with the files of the user's.

    Raises:
        Exception: what Hydra raises for mistakes that are in none of those files.
    """
    lenient = _LenientLoader(loader)
    cfg = lenient.compose(config_name, list(overrides))
    return Composed(cfg, list(lenient.problems.values()), lenient.lost, lenient.wrong, lenient.placed)


class _Again(Exception):
    """A mistake was found and noted in what has been merged already: compose again without it."""


class _LenientLoader(ConfigLoaderImpl):
    """Hydra's loader, which notes what is wrong with a file of the user's and goes on without it."""

    def __init__(self, loader: ConfigLoader) -> None:
        vars(self).update(vars(loader))
        self.problems: dict[str, Problem] = {}
        self.lost: set[str] = set()
        self.wrong: set[str] = set()
        self.files: dict[str, OwnFile] = {}
        self.empty: set[str] = set()
        """Options that are taken as empty."""
        self.dropped: set[tuple[str, tuple[str, ...]]] = set()
        """Values that are left out: the option and the path in its file."""

    def note(self, problem: Problem, file: OwnFile, line: int | None = None, place: str = "") -> None:
        """Keep a problem with a file."""
        found = in_file(problem, f"{file.name}{place}" if place else file.at(line))
        self.problems[str(found)] = found

    def compose(self, config_name: str | None, overrides: list[str]) -> DictConfig:
        """The config without what is wrong in files of the user's, which is noted."""
        while True:
            self.placed: list[Placed] = []
            self.merged = OmegaConf.create()
            before = len(self.problems)
            try:
                return self.load_configuration(config_name, overrides, RunMode.RUN)
            except _Again:
                continue
            except UNREADABLE as error:
                typed = {tuple(text.partition("=")[::2]) for text in overrides}
                self.blame(error, typed)
                if len(self.problems) == before:
                    raise

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = OverridesParser.create().parse_overrides(overrides)
        self.repo = _LenientRepository(self)
        self._process_config_searchpath(config_name, parsed, self.repo)
        return parsed, self.repo

    # ---- one file

    def read(self, option: str, source: ConfigSource) -> bool:
        """Read the text of a file of the user's. False: it is to be taken as empty."""
        if option in self.files:
            return option not in self.empty
        file = OwnFile(option, *_text_of(option, source))
        self.files[option] = file
        try:
            file.data = _path(option, source).read_bytes()
            file.root, faults = read_yaml(file.data)
        except OSError as error:
            faults = [Fault(f"cannot be read: {error.strerror}")]
        for fault in faults:
            self.note(Problem({}, fault.rule, fault.fix), file, place=fault.place)
        if faults:
            self.lose(file)
        return not faults

    def lose(self, file: OwnFile) -> None:
        """Go on as if a file were empty."""
        self.empty.add(file.option)
        self.lost.add(file.group)

    # ---- the defaults lists

    def blame(self, error: BaseException, typed: Collection[tuple[str, ...]]) -> None:
        """Note a problem with the file that made Hydra raise this, if one did."""
        if isinstance(error, RecursionError):
            self.blame_circle()
        elif missing := getattr(error, "missing_cfg_file", None):
            if tuple(missing.rpartition("/")[::2]) not in typed:
                self.blame_entry(missing, getattr(error, "options", None) or ())
        elif found := _IN_FILE.match(str(error)):
            self.blame_defaults(found[1], found[2])
        else:
            text = first_line(error)
            named = [option for option in self.files if re.search(rf"(^|\W){re.escape(option)}(\W|$)", text)]
            for option in named or list(self.with_key(text))[:1]:
                self.blame_defaults(option, text)

    def entries(self) -> Iterator[tuple[OwnFile, int, Any]]:
        """Each entry of the defaults lists of the user's files."""
        for option, file in self.files.items():
            if file.result is not None and option not in self.empty:
                for number, default in enumerate(file.result.defaults_list or ()):
                    found = copy.deepcopy(default)
                    if not found.is_self():
                        found.update_parent(file.group, "")
                    yield file, number, found

    def with_key(self, text: str) -> Iterator[str]:
        """The options whose defaults list has a group that a text names."""
        for file, _, default in self.entries():
            if isinstance(default, GroupDefault) and re.search(rf"(^|\W){default.get_group_path()}(\W|$)", text):
                yield file.option

    def blame_entry(self, missing: str, options: Sequence[str]) -> None:
        """Note that a defaults list names what there is not."""
        group, _, name = missing.rpartition("/")
        for file, number, default in self.entries():
            if missing in _paths_of(default):
                known = options or self.repo.get_group_options(group)
                problem = (
                    no_such_option(group, name, known) if known else Problem({}, f"there is no config {missing!r}")
                )
                self.note(problem, file, entry_line(file.root, number))
                self.empty.add(missing)
                self.lost.add(group)

    def blame_defaults(self, option: str, text: str) -> None:
        """Note what Hydra does not accept in the defaults list of a file."""
        if (file := self.files.get(option)) is None:
            return
        text = " ".join(text.partition("\n\n")[0].partition("\nAvailable")[0].split())
        lines = [entry_line(file.root, number) for one, number, default in self.entries() if one is file
                 and isinstance(default, GroupDefault) and f"'{default.get_override_key()}'" in text]  # fmt: skip
        if match := re.match(r"Could not override '([^']+)'\. No match", text):
            groups = self.repo.get_group_options("", ObjectType.GROUP)
            problem = Problem.about(f"override {match[1]}", "there is no such group", _near(match[1], groups))
        else:
            problem = Problem.about("defaults", text.rstrip(".:"))
        self.note(problem, file, next(iter(lines), None))
        self.lose(file)

    def blame_circle(self) -> None:
        """Note files whose defaults lists lead back to themselves."""
        below: dict[str, set[str]] = {}
        for file, _, default in self.entries():
            below.setdefault(file.option, set()).update(_paths_of(default))
        for option in below:
            if (circle := _circle(option, below)) is not None:
                file = self.files[option]
                self.note(Problem.about("defaults", f"the file includes itself: {' -> '.join(circle)}"), file)
                self.lose(file)
                return

    # ---- merging

    def _load_single_config(self, default: ResultDefault, repo: Any) -> ConfigResult:
        option = str(default.config_path)
        file = self.files.get(option)
        loaded = super()._load_single_config(default, repo)
        config: Any = loaded.config
        if file is not None and option not in self.empty:
            package = tuple(part for part in str(default.package or "").split(".") if part)
            self.placed.append(Placed(file, package))
            config = self.without_wrong(config, file, len(package))
        elif not _merges(self.merged, config):
            self.blame_before(config)
        self.merged.merge_with(copy.deepcopy(config))
        return replace(loaded, config=config)

    def without_wrong(self, config: Any, file: OwnFile, depth: int) -> Any:
        """The config of a file without the values that do not fit what has been merged before."""
        known = [path for path, _ in _leaves(config) if (file.option, path) in self.dropped]
        if not known and _merges(self.merged, config):
            return config
        fitting = OmegaConf.create()
        for path, value in _leaves(config):
            leaf = _nested(path, value)
            if path in known:
                continue
            error = _refusal(self.merged, leaf)
            if error is None:
                fitting.merge_with(leaf)
            else:
                self.drop(file, path, path[depth:], wrong_value(".".join(path), value, error, self.merged))
        return fitting

    def drop(self, file: OwnFile, path: tuple[str, ...], own: tuple[str, ...], problem: Problem) -> None:
        """Leave out a value of a file."""
        self.dropped.add((file.option, path))
        self.wrong.add(".".join(path))
        self.note(problem, file, line_of(file.root, own))

    def blame_before(self, config: Any) -> None:
        """Find the values of the user's that do not fit a config of ours which is merged after them.

        Raises:
            _Again: there are some.
        """
        found = False
        for file, package in self.placed:
            loaded = file.result.config if file.result else OmegaConf.create()
            for own, value in _leaves(loaded):
                path = (*package, *own)
                if (file.option, path) in self.dropped:
                    continue
                if (error := _refusal(config, _nested(path, value))) is not None:
                    self.drop(file, path, own, wrong_value(".".join(path), value, error, config))
                    found = True
        if found:
            raise _Again


class _LenientRepository(CachingConfigRepository):
    """Hydra's, in which files of the user's that cannot be read are empty."""

    def __init__(self, loader: _LenientLoader) -> None:
        super().__init__(loader.repository)
        self.loader = loader

    def load_config(self, config_path: str) -> ConfigResult | None:
        """See Hydra's."""
        key = f"config_path={config_path}"
        if key in self.cache:
            return self.cache[key]
        source: Any = self.delegate._find_object_source(config_path, ObjectType.CONFIG)  # pyright: ignore
        if config_path in self.loader.empty and source is None:
            self.cache[key] = _empty("", "")
        elif source is None or not _is_own(source):
            return super().load_config(config_path)
        else:
            self.cache[key] = self._own(config_path, source)
        return self.cache[key]

    def _own(self, option: str, source: ConfigSource) -> ConfigResult | None:
        if not self.loader.read(option, source):
            return _empty(source.full_path(), source.provider)
        file = self.loader.files[option]
        try:
            file.result = super().load_config(option)
        except (*REFUSED, OSError) as error:
            self.loader.note(Problem({}, first_line(error)), file)
            self.loader.lose(file)
            return _empty(source.full_path(), source.provider)
        return file.result


def _empty(path: str, provider: str) -> ConfigResult:
    result = ConfigResult(provider, path, OmegaConf.create(), {"package": "_global_"})
    result.defaults_list = []
    return result


def _path(option: str, source: ConfigSource) -> Any:
    name = ConfigSource._normalize_file_name(option)
    return Path(source.path, name) if source.scheme() == "file" else files(source.path) / name


def _text_of(option: str, source: ConfigSource) -> tuple[str, bytes, None]:
    """The name of a file for users, and what is known before it is read."""
    path = _path(option, source)
    if source.scheme() != "file":
        return f"{source.full_path()}/{ConfigSource._normalize_file_name(option)}", b"", None
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path), b"", None


def _paths_of(default: Any) -> list[str]:
    """The options that an entry of a defaults list names."""
    if default.is_self() or default.is_missing():
        return []
    if isinstance(default, GroupDefault) and isinstance(default.value, list):
        return [f"{default.get_group_path()}/{name}" for name in default.value]
    return [] if default.get_name() is None else [default.get_config_path()]


def _circle(start: str, below: dict[str, set[str]]) -> list[str] | None:
    """The way from an option back to itself."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for option in sorted(below.get(way[-1], ())):
            if option == start:
                return [*way, start]
            if option not in seen:
                seen.add(option)
                ways.append([*way, option])
    return None


def _near(name: str, known: Collection[str]) -> str:
    from xlstm_hydra.configs._problems import nearest

    return nearest(name, sorted({*known, *RunConfig.__dataclass_fields__}))


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of a config that are not keys and values themselves, unresolved."""
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict) or not plain:
        if path:
            yield path, plain
        return
    for key, value in plain.items():
        yield from _leaves(value, (*path, str(key)))


def _nested(path: tuple[str, ...], value: Any) -> DictConfig:
    for key in reversed(path):
        value = {key: value}
    return cast(DictConfig, OmegaConf.create(value))


def _merges(cfg: DictConfig, other: Any) -> bool:
    return _refusal(cfg, other) is None


def _refusal(cfg: Any, other: Any) -> Exception | None:
    """What OmegaConf raises when a config is merged into another."""
    try:
        copy.deepcopy(cfg).merge_with(copy.deepcopy(other))
    except (OmegaConfBaseException, *REFUSED) as error:
        return error
    return None
