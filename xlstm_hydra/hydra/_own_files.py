"""The user's own config files, and the locations of problems in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

from xlstm_hydra._printable import printable
from xlstm_hydra.problems import Missing, Problem, UnknownGroup

from ._omegaconf import leaves
from ._yaml_file import header_problem, line_of


@dataclass(frozen=True)
class FileProblem(Problem):
    """A problem located in one of the user's config files."""

    where: str = field(default="", kw_only=True)
    """Path of the file, followed by the line if it is known."""

    def __str__(self) -> str:
        return f"{printable(self.where)}: {super().__str__()}"

    def with_full_keys(self, text: str) -> str:
        """Expand keys in braces, unless the problem has no keys: its braces are then text from the file."""
        return super().with_full_keys(text) if self.given else text


def in_file(problem: Problem, where: str) -> FileProblem:
    """Return the same problem as a `FileProblem`.

    Args:
        problem: the problem.
        where: path of the file, followed by the line if it is known.
    """
    values = {name: getattr(problem, name) for name in ("given", "rule", "fix", "unused", "prefix")}
    return FileProblem(**values, where=where)


@dataclass
class OwnFile:
    """One of the user's config files."""

    option: str
    """Path of the option, such as `experiment/mine`."""
    name: str
    """Path of the file, for messages."""
    data: bytes = b""
    root: yaml.Node | None = None
    result: ConfigResult | None = None

    def at(self, line: int | None) -> str:
        """Return the path for messages, followed by the line if it is known."""
        return self.name if line is None else f"{self.name}, line {line}"

    @property
    def group(self) -> str:
        """Group of the option."""
        return self.option.rpartition("/")[0]


class Placed(NamedTuple):
    """One of the user's config files, and its package: the path in the composed config where its values are placed."""

    file: OwnFile
    package: tuple[str, ...]

    def line(self, key: str) -> int | None:
        """Return the line in which the file sets a dotted key; None if the file does not set the key."""
        parts = tuple(key.split("."))
        depth = min(len(self.package), len(parts))
        return line_of(self.file.root, parts[depth:]) if parts[:depth] == self.package[:depth] else None


@dataclass
class Composed:
    """A config that was composed despite errors."""

    cfg: DictConfig
    problems: list[Problem]
    lost: set[str]
    """Groups whose option could not be read."""
    wrong: set[str]
    """Keys whose invalid values were dropped."""
    placed: list[Placed]
    """The user's config files, in the order in which they were merged."""

    def hydra_keys(self) -> Iterator[str]:
        """Yield the keys of the `hydra` node that the user's config files set."""
        for placed in self.placed:
            config = None if placed.file.result is None else placed.file.result.config
            for path, _ in leaves(config or {}):
                if (key := ".".join((*placed.package, *path))).startswith("hydra."):
                    yield key

    def locate(self, problem: Problem, typed: Collection[str]) -> Problem:
        """Return the problem with the file and line that set the values it names; unchanged if no file sets them.

        Args:
            problem: a problem with the composed config.
            typed: keys set on the command line, which overrides the files.
        """
        if isinstance(problem, FileProblem):
            return problem
        for key in (key for key in problem.keys if key not in typed):
            for placed in reversed(self.placed):
                if (line := placed.line(key)) is None:
                    continue
                if isinstance(problem, UnknownGroup) and placed.package:
                    return self.misplaced(placed)
                if isinstance(problem, UnknownGroup) and "." in key:
                    group, _, rest = key.partition(".")
                    fix = f"Write {group}: {{{rest}: ...}}."
                    problem = Problem.about(key, "keys in a file cannot contain dots", fix)
                return in_file(problem, placed.file.at(line))
        if isinstance(problem, Missing):
            for placed in reversed(self.placed):
                if placed.package and any(key.startswith(f"{'.'.join(placed.package)}.") for key in problem.keys):
                    return in_file(problem, placed.file.name)
        return problem

    def misplaced(self, placed: Placed) -> Problem:
        """Return the `Problem` for a file whose package is not a group of a run."""
        problem = header_problem(placed.file.data, ".".join(placed.package), placed.file.root is None)
        return in_file(problem, placed.file.name)


def path_of(option: str, source: ConfigSource) -> Any:
    """Return the path of an option's file."""
    name = ConfigSource._normalize_file_name(option)
    return Path(source.path, name) if source.scheme() == "file" else files(source.path) / name


def name_of(option: str, source: ConfigSource) -> str:
    """Return the path of an option's file for messages: a relative path if the file is in the current folder."""
    if source.scheme() != "file":
        return f"{source.full_path()}/{ConfigSource._normalize_file_name(option)}"
    path, here = path_of(option, source), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
