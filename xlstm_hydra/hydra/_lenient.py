"""Compose despite errors in the user's config files, and report each error with its file and line.

Hydra stops at the first error, and often reports neither file nor key. This module is only used after Hydra has failed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

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

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.errors import first_line
from xlstm_hydra.problems import Problem, show

from ._defaults_list import circle, entry_fault, outside_group, paths_of
from ._hydra_part import not_installed
from ._omegaconf import REFUSED, copy_config, empties, leaves, nested, refusal
from ._options import no_such_option
from ._own_files import Composed, OwnFile, Placed, in_file, name_of, path_of
from ._refusals import wrong_value
from ._search_path import is_own
from ._yaml_file import Fault, entry_line, header_faults, header_problem, line_of, read_yaml

UNREADABLE = (*REFUSED, OSError, RecursionError)
"""Exceptions that a config file can cause during composition. `RecursionError`: the file includes itself."""

_IN_FILE = re.compile(r"^In '?([^':\n]+)'?: (.*)", re.DOTALL)


def compose_files(loader: ConfigLoader, config_name: str | None, overrides: Sequence[str]) -> Composed:
    """Compose a config despite errors in the user's config files.

    Raises:
        Exception: any of Hydra's exceptions, for an error outside the user's config files.
    """
    lenient = _LenientLoader(loader)
    cfg = lenient.compose(config_name, list(overrides))
    return Composed(cfg, list(lenient.problems.values()), lenient.lost, lenient.wrong, lenient.placed)


class _Again(Exception):
    """Composition must be restarted, because a value to drop was found in a file that is already merged."""


class _LenientLoader(ConfigLoaderImpl):
    """Hydra's config loader, except that it records errors in the user's config files and drops the invalid parts."""

    def __init__(self, loader: ConfigLoader) -> None:
        vars(self).update(vars(loader))
        self.problems: dict[str, Problem] = {}
        self.lost: set[str] = set()
        self.wrong: set[str] = set()
        self.files: dict[str, OwnFile] = {}
        self.empty: set[str] = set()
        """Options that are treated as empty."""
        self.removed: set[tuple[str, int]] = set()
        """Defaults list entries to drop, as (option, index)."""
        self.unordered: set[str] = set()
        """Options in whose defaults list `override` entries are moved to the end."""
        self.dropped: set[tuple[str, tuple[str, ...]]] = set()
        """Values to drop, as (option, path in the composed config)."""

    def note(self, problem: Problem, file: OwnFile, line: int | None = None, position: str = "") -> None:
        """Record a problem located in a file, at a line or at a position given as text."""
        found = in_file(problem, f"{file.name}{position}" if position else file.at(line))
        self.problems[str(found)] = found

    def compose(self, config_name: str | None, overrides: list[str]) -> DictConfig:
        """Compose without the invalid parts of the user's config files, whose problems are recorded."""
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

    def parse_overrides(self, config_name: str | None, overrides: list[str]) -> list[Override]:
        """Parse overrides. Hydra 1.4 also applies the aliases defined in the primary config, if it can be read."""
        parse: Any = getattr(super(), "parse_overrides", None)
        try:
            if parse is not None:
                return parse(config_name, overrides)
        except UNREADABLE:
            pass  # the file is read again later, and its errors are recorded then
        return OverridesParser.create().parse_overrides(overrides)

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str], parsed_overrides: list[Override] | None = None
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = parsed_overrides or self.parse_overrides(config_name, overrides)
        self.repo = _LenientRepository(self)
        self._process_config_searchpath(config_name, parsed, self.repo)
        return parsed, self.repo

    # ---- one file

    def read(self, option: str, source: ConfigSource) -> bool:
        """Read one of the user's config files. Return False if it must be treated as empty."""
        if option in self.files:
            return option not in self.empty
        file = OwnFile(option, name_of(option, source))
        self.files[option] = file
        try:
            file.data = path_of(option, source).read_bytes()
            file.root, faults = read_yaml(file.data)
            faults += header_faults(file.data)
        except OSError as error:
            faults = [Fault(f"cannot be read: {error.strerror}")]
        for fault in faults:
            self.note(Problem({}, fault.rule, fault.fix), file, position=fault.position)
        if faults:
            self.lose(file)
        return not faults

    def lose(self, file: OwnFile) -> None:
        """Treat a file as empty."""
        self.empty.add(file.option)
        self.lost.add(file.group)

    # ---- the defaults lists

    def blame(self, error: BaseException, typed: Collection[tuple[str, ...]]) -> None:
        """Record a problem if one of the user's config files caused an error. Errors about options selected on the
        command line, given as (key, value) pairs in `typed`, are not recorded."""
        if isinstance(error, RecursionError):
            self.blame_circle()
        elif missing := getattr(error, "missing_cfg_file", None):
            if tuple(missing.rpartition("/")[::2]) not in typed:
                self.blame_entry(missing, getattr(error, "options", None) or ())
        elif found := _IN_FILE.match(str(error)):
            self.blame_defaults(found[1], found[2])
        elif not self.blame_lists():
            text = first_line(error)
            named = [option for option in self.files if re.search(rf"(^|\W){re.escape(option)}(\W|$)", text)]
            for option in named or list(self.with_key(text))[:1]:
                self.blame_defaults(option, text)

    def entries(self) -> Iterator[tuple[OwnFile, int, Any]]:
        """Yield (file, index, entry) for each entry of the defaults lists in the user's config files."""
        for option, file in self.files.items():
            if file.result is not None and option not in self.empty:
                for default in file.result.defaults_list or ():
                    found: Any = copy.deepcopy(default)
                    if not found.is_self():
                        found.update_parent(file.group, "")
                    yield file, found.number, found

    def with_key(self, text: str) -> Iterator[str]:
        """Yield each option whose defaults list has an entry with a group or value that is mentioned in `text`."""
        for file, _, default in self.entries():
            names = [default.get_group_path(), str(default.value)] if isinstance(default, GroupDefault) else []
            if any(re.search(rf"(^|\W){re.escape(name)}(\W|$)", text) for name in names):
                yield file.option

    def blame_entry(self, missing: str, options: Sequence[str]) -> None:
        """Record a problem for each defaults list entry that selects `missing`, an option that does not exist."""
        group, _, name = missing.rpartition("/")
        for file, number, default in self.entries():
            if missing in paths_of(default):
                known = options or self.repo.get_group_options(group)
                known = [option for option in known if not option.startswith("_")]
                problem = not_installed(group, name) or no_such_option(group or "defaults", name, known)
                if not known and (fix := outside_group(default, self.groups())):
                    problem = Problem({group: name}, "there is no such group", fix)
                self.note(problem, file, entry_line(file.root, number))
                self.empty.add(missing)
                self.lost.add(group)

    def blame_defaults(self, option: str, text: str) -> None:
        """Record a problem with the defaults list in the file of an option, given Hydra's error message."""
        if (file := self.files.get(option)) is None:
            return
        text = " ".join(text.partition("\n\n")[0].partition("\nAvailable")[0].split())
        entries = [(number, default) for one, number, default in self.entries() if one is file]
        fault = entry_fault(text, entries, self.groups())
        has_header = file.result is None or file.result.header["package"] is not None
        if fault is None or (fault.number is not None and not has_header and "@" in text):
            problem = Problem.about("defaults", text.rstrip(".:"))
            if "override" in text and not has_header:
                problem = header_problem(file.data, file.group.replace("/", "."), False)
            self.note(problem, file)
            self.lose(file)
        elif fault.number is None:
            self.note(fault.problem, file, line_of(file.root, fault.problem.keys[0].split(".")))
            self.lose(file)
        else:
            self.note(fault.problem, file, entry_line(file.root, fault.number))
            if fault.is_misplaced:
                self.unordered.add(option)
            else:
                self.removed.add((option, fault.number))

    def groups(self) -> list[str]:
        """Return all top-level config groups except `hydra`."""
        return sorted({*self.repo.get_group_options("", ObjectType.GROUP)} - {"hydra"})

    def blame_lists(self) -> bool:
        """Record a problem for each entry that selects several options of a single-option group. False: none found."""
        before = len(self.removed)
        for file, number, default in self.entries():
            group = default.get_group_path() if isinstance(default, GroupDefault) else ""
            if group and isinstance(default.value, list) and group in (*RunConfig.__dataclass_fields__, "parallel"):
                problem = Problem.about(group, f"expected one option, got {show(default.value)}")
                self.note(problem, file, entry_line(file.root, number))
                self.removed.add((file.option, number))
        return len(self.removed) > before

    def blame_circle(self) -> None:
        """Record a problem for the first file that includes itself through defaults lists."""
        below: dict[str, set[str]] = {}
        for file, _, default in self.entries():
            below.setdefault(file.option, set()).update(paths_of(default))
        for option in below:
            if (way := circle(option, below)) is not None:
                file = self.files[option]
                self.note(Problem.about("defaults", f"the file includes itself: {' -> '.join(way)}"), file)
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
        elif refusal(self.merged, config) is not None:
            self.blame_before(config)
        self.merged.merge_with(copy_config(config))
        return replace(loaded, config=config)

    def without_wrong(self, config: Any, file: OwnFile, depth: int) -> Any:
        """Return a file's config without the values that cannot be merged. `depth`: number of names in its package."""
        known = [path for path, _ in leaves(config) if (file.option, path) in self.dropped]
        if not known and refusal(self.merged, config) is None:
            return config
        fitting = OmegaConf.create()
        for path, value in leaves(config):
            leaf = nested(path, value)
            if path in known:
                continue
            error = refusal(self.merged, leaf)
            if error is None:
                fitting.merge_with(leaf)
            else:
                if not empties(self.merged, path, value):  # the group keeps its values
                    self.wrong.add(".".join(path))
                self.drop(file, path, path[depth:], wrong_value(".".join(path), value, error, self.merged, self))
        return fitting

    def drop(self, file: OwnFile, path: tuple[str, ...], own: tuple[str, ...], problem: Problem) -> None:
        """Drop the value at `path` in the composed config and at `own` in the file, and record its problem."""
        self.dropped.add((file.option, path))
        self.note(problem, file, line_of(file.root, own))

    def blame_before(self, config: Any) -> None:
        """Drop values of the user's config files that conflict with `config`, a built-in config merged after them.

        Raises:
            _Again: values were dropped, so composition must be restarted.
        """
        found = False
        for file, package in self.placed:
            loaded = file.result.config if file.result else OmegaConf.create()
            for own, value in leaves(loaded):
                path = (*package, *own)
                if (file.option, path) in self.dropped:
                    continue
                if (error := refusal(config, nested(path, value))) is not None:
                    self.wrong.add(".".join(path))
                    self.drop(file, path, own, wrong_value(".".join(path), value, error, config, self))
                    found = True
        if found:
            raise _Again


class _LenientRepository(CachingConfigRepository):
    """Hydra's config repository, except that the user's config files are treated as empty if they cannot be read."""

    def __init__(self, loader: _LenientLoader) -> None:
        super().__init__(loader.repository)
        self.loader = loader

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Override of Hydra's method."""
        key = f"config_path={config_path}"
        if key in self.cache:
            return self.cache[key]
        source: Any = self.delegate._find_object_source(config_path, ObjectType.CONFIG)  # pyright: ignore
        if config_path in self.loader.empty and source is None:
            self.cache[key] = _empty("", "")
        elif source is None or not is_own(source):
            return super().load_config(config_path)
        else:
            self.cache[key] = self._own(config_path, source)
        return self.cache[key]

    def _own(self, option: str, source: ConfigSource) -> ConfigResult | None:
        if not self.loader.read(option, source):
            return _empty(source.full_path(), source.provider)
        file = self.loader.files[option]
        try:
            file.result = self.numbered(super().load_config(option), option)
        except (*REFUSED, OSError) as error:
            self.loader.note(Problem({}, first_line(error)), file)
            self.loader.lose(file)
            return _empty(source.full_path(), source.provider)
        return file.result

    def numbered(self, result: ConfigResult | None, option: str) -> ConfigResult | None:
        """Number the entries of an option's defaults list, and drop the entries in `removed`."""
        defaults: list[Any] = (result.defaults_list if result else None) or []
        for number, default in enumerate(defaults):
            default.number = number
        defaults[:] = [one for one in defaults if (option, one.number) not in self.loader.removed]
        if option in self.loader.unordered:
            defaults.sort(key=lambda default: default.is_override())
        return result


def _empty(path: str, provider: str) -> ConfigResult:
    result = ConfigResult(provider, path, OmegaConf.create(), {"package": "_global_"})
    result.defaults_list = []
    return result
