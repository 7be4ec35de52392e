"""Compose and check a single run or a point of a sweep, and collect all errors. Hydra stops at the first error."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, Sweep
from omegaconf import DictConfig, OmegaConf, ValueNode, open_dict
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.problems import ConfigError, Problem, UnknownKey, independent, show

from ._hydra_part import callback_problems, unchosen_groups
from ._interpolations import unresolved
from ._lenient import UNREADABLE
from ._load import read
from ._omegaconf import REFUSED, copy_config, leaves, nested, refusal
from ._own_files import Composed
from ._refusals import not_options, refused, several_values, wrong_value
from ._unreadable import num_pieces, split_at_blanks, unreadable


@dataclass(frozen=True)
class Point:
    """A point of a sweep that has been composed and checked."""

    overrides: list[str]
    refused: list[Problem]
    """Problems with overrides that cannot be composed."""
    broken: list[Problem]
    """Broken rules of the config composed from the remaining overrides."""
    task: str | None
    run: RunConfig
    """The config, without values that cannot be read."""

    @property
    def problems(self) -> list[Problem]:
        """All problems of the point."""
        return [*self.refused, *self.broken]


class _Base(NamedTuple):
    """The config composed from the selected options of a point, before overrides of values are applied."""

    cfg: DictConfig
    job: DictConfig
    """A config that contains only the `hydra` node."""
    problems: list[Problem]
    lost: Collection[str] = ()
    """Groups whose option was rejected. The config has their default options, whose problems are not reported."""
    composed: Composed | None = None
    """Locations of values in the user's config files. None: not looked up."""
    references: Mapping[str, str] = MappingProxyType({})
    """Interpolations that the user sets in the `hydra` node, by key."""


class Composer:
    """Composes and checks points. Composing options takes 50 ms, and setting a value 0.1 ms, so each combination of
    options is composed once, and values are set in copies."""

    def __init__(
        self,
        parse: Callable[[str], Override],
        compose: Callable[[Sequence[str]], DictConfig],
        compose_leniently: Callable[[Sequence[str]], Composed],
        has_files: bool,
    ) -> None:
        self.parse, self.compose, self.compose_leniently, self.has_files = parse, compose, compose_leniently, has_files
        self.bases: dict[tuple[str, ...], _Base] = {}

    def check(
        self,
        overrides: Sequence[str],
        more: Callable[[RunConfig], Iterable[Problem]] = lambda _: (),
        unread: Collection[str] = (),
        leniently: bool = False,
    ) -> Point:
        """Compose and check one point.

        Args:
            overrides: overrides of the point.
            more: additional rules, checked only if no other problem is found.
            unread: keys of command-line overrides that could not be parsed and are not in `overrides`.
            leniently: look for errors in the user's config files even if no other problem is found.
        """
        readable, unreadable, own = self.readable(overrides)
        several = [override for override in readable if override.is_sweep_override()]
        unreadable += map(several_values, several)
        single = [override for override in readable if override not in several]
        choices = [override for override in single if _may_choose(override)]
        values = [override for override in single if not _may_choose(override)]
        wrong = {*unread, *own} | {override.key_or_group for override in several}
        has_files = self.may_have_files(choices)
        leniently = leniently and has_files
        run, task, refused, broken = self.checked(self.base(choices, leniently), values, wrong)
        if has_files and not leniently and (refused or broken):
            run, task, refused, broken = self.checked(self.base(choices, leniently=True), values, wrong)
        refused = [*unreadable, *refused]
        if not refused and not broken:
            refused += more(run)
        return Point(list(overrides), refused, broken, task, run)

    def checked(
        self, base: _Base, values: list[Override], wrong: Collection[str]
    ) -> tuple[RunConfig, str | None, list[Problem], list[Problem]]:
        """Set values in a composed base, and check the result.

        Args:
            base: config composed from the options.
            values: overrides that set values.
            wrong: keys that are known to be invalid. Problems that they may cause are not returned.

        Returns:
            The run, the name of its task, problems with rejected overrides, and problems with broken rules.
        """
        cfg, found = self.apply(values, base.cfg)
        with _as_job(base.job):
            run, broken = read(cfg)
            broken = [*self.job_problems(base, cfg), *broken]
        refused = [*base.problems, *(one for one in found.values() if not _is_lost(one, base, wrong))]
        wrong = {*wrong, *found, *(base.composed.wrong if base.composed else ())}
        broken = [problem for problem in independent(broken, refused) if not _is_lost(problem, base, wrong)]
        if base.composed is not None:
            typed = {*(override.key_or_group for override in values), *self.hydra_keys(base)}
            broken = [base.composed.locate(problem, typed) for problem in broken]
        return run, OmegaConf.select(cfg, "task.name"), refused, broken

    def job_problems(self, base: _Base, cfg: DictConfig) -> Iterator[Problem]:
        """Yield every problem with values in the `hydra` node. Hydra stops at the first problem."""
        node: Any = base.job.hydra._get_node("verbose")
        verbose = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
        if not isinstance(verbose, bool | str | list):
            rule = f"expected true, false, a logger name or a list of logger names, got {show(verbose)}"
            yield Problem.about("hydra.verbose", rule)
        yield from callback_problems(base.job)
        yield from unchosen_groups(base.job.hydra.runtime.choices, cfg)
        if not base.references:
            return
        whole = copy_config(cfg)
        with open_dict(whole):
            whole["hydra"] = base.job.hydra
        for key, raw in base.references.items():
            try:
                OmegaConf.select(whole, key)
            except (MissingMandatoryValue, InterpolationToMissingValueError):
                continue  # the target gets its value when the job starts
            except OmegaConfBaseException as error:
                yield unresolved(key, raw, error, whole)

    def references(self, base: _Base) -> dict[str, str]:
        """Return the interpolations that the command line or the user's config files set in the `hydra` node, by key.
        They are the same for all points with the same options."""
        keys = [*self.hydra_keys(base), *(base.composed.hydra_keys() if base.composed else ())]
        return {key: raw for key in keys if "${" in str(raw := _raw(key, base.job))}

    def hydra_keys(self, base: _Base) -> list[str]:
        """Return the keys of the `hydra` node that are set on the command line."""
        typed: Any = OmegaConf.to_container(base.job.hydra.overrides, resolve=False)
        return [self.parse(text).key_or_group for text in typed["hydra"]]

    def may_have_files(self, choices: list[Override]) -> bool:
        """True if the user's config files may be part of the config."""
        return self.has_files or any(override.key_or_group == "hydra.searchpath" for override in choices)

    def readable(self, overrides: Sequence[str]) -> tuple[list[Override], list[Problem], set[str]]:
        """Parse overrides. Return the valid overrides, and the problems and keys of the invalid overrides."""
        readable, problems, unread, rest = [], [], set(), list(overrides)
        while rest:
            number = num_pieces(rest)
            texts, rest = rest[:number], rest[number:]
            try:
                if number > 1:
                    raise ConfigError([split_at_blanks(texts, self.is_readable)])
                readable.append(self.read(texts[0]))
            except ConfigError as error:
                problems += error.problems
                unread.add(_key_of(texts[0]))
        return readable, problems, unread

    def read(self, text: str) -> Override:
        """Parse an argument.

        Raises:
            ConfigError: the argument is not a valid override.
        """
        try:
            override = self.parse(text)
            if not override.key_or_group:
                raise ValueError("the key is empty")
        except REFUSED as error:
            raise ConfigError([unreadable(text, error)]) from None
        if _holds_sweep(override.value()):
            fix = "Write out the elements of the list."
            raise ConfigError([Problem.about(text, "a sweep cannot be an element of a list", fix)])
        if problem := not_options(override):
            raise ConfigError([problem])
        return override

    def is_readable(self, text: str) -> bool:
        """True if an argument is a valid override."""
        try:
            self.read(text)
        except ConfigError:
            return False
        return True

    def base(self, choices: list[Override], leniently: bool = False) -> _Base:
        """Compose the selected options, without setting values. The result is cached.

        Args:
            choices: overrides that select options.
            leniently: continue at errors in the user's config files, and look up the locations of their values.
        """
        key = tuple(str(override.input_line) for override in choices)
        if key not in self.bases or (leniently and self.bases[key].composed is None):
            try:
                found = None if leniently else _Base(*_split_off_job(self.compose(key)), problems=[])
            except UNREADABLE:
                found = None
            found = found or self.one_by_one(choices)
            self.bases[key] = found._replace(references=self.references(found))
        return self.bases[key]

    def one_by_one(self, choices: list[Override]) -> _Base:
        """Compose the selected options together or, if that fails, one at a time, skipping the options that Hydra
        rejects."""
        texts = [str(override.input_line) for override in choices]
        compose = self.compose_leniently if self.may_have_files(choices) else self.composed
        try:
            composed, problems, lost = compose(texts), [], set()
        except REFUSED:
            composed, problems, lost = compose(()), [], set()
            accepted: list[str] = []
            for override, text in zip(choices, texts, strict=True):
                try:
                    composed = compose([*accepted, text])
                    accepted.append(text)
                except REFUSED as error:
                    problems.append(refused(override, error, composed.cfg))
                    lost |= {override.key_or_group} & set(composed.cfg.hydra.runtime.choices)
        parts = _split_off_job(composed.cfg)
        return _Base(*parts, [*composed.problems, *problems], lost | composed.lost, composed)

    def composed(self, choices: Sequence[str]) -> Composed:
        """Compose the selected options without locating values in the user's config files, in half the time."""
        return Composed(self.compose(choices), problems=[], lost=set(), wrong=set(), placed=[])

    def apply(self, values: list[Override], base: DictConfig) -> tuple[DictConfig, dict[str, Problem]]:
        """Set values in a copy of `base`. Return the copy, and a problem for each rejected value, by key."""
        cfg, problems, accepted = copy_config(base), {}, []
        for override in values:
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
                accepted.append(override)
            except REFUSED as error:
                problems |= _parts(override, base) or {override.key_or_group: refused(override, error, base)}
                cfg = copy_config(base)  # the rejected override may have been applied partially
                ConfigLoaderImpl._apply_overrides_to_config(accepted, cfg)
        return cfg, problems


def _holds_sweep(value: Any) -> bool:
    """True for a list or dictionary that contains a sweep, which Hydra can parse but not run."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(item, Sweep) or _holds_sweep(item) for item in items)


def _split_off_job(composed: DictConfig) -> tuple[DictConfig, DictConfig]:
    """Split a config into two: one without the `hydra` node, and one with only that node, as in the first job of a
    sweep."""
    cfg = copy_config(composed)
    job = OmegaConf.masked_copy(cfg, "hydra")
    with open_dict(cfg), open_dict(job):
        del cfg["hydra"]
        job.hydra.job.num, job.hydra.job.id, job.hydra.runtime.output_dir = 0, "0", os.getcwd()
    return cfg, job


def _raw(key: str, cfg: DictConfig) -> Any:
    """Return the unresolved value of a dotted key; None if the key does not exist or is not a single value."""
    path, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, path, throw_on_resolution_failure=False)
    node: Any = parent._get_node(name) if isinstance(parent, DictConfig) and name in parent.keys() else None
    return node._value() if isinstance(node, ValueNode) else None


def _may_choose(override: Override) -> bool:
    """True if an override may select an option, or sets a key of the `hydra` node. Overrides with a dictionary always
    set values."""
    key = override.key_or_group
    may = not isinstance(override.value(), dict) and (override.package is not None or "." not in key)
    return may or key.startswith("hydra.")


def _parts(override: Override, cfg: DictConfig) -> dict[str, Problem]:
    """Return a problem for each rejected value of an override with a dictionary, by key; empty for other overrides."""
    value: Any = override.value()
    if not isinstance(value, dict) or override.is_add() or override.is_delete():
        return {}
    problems = {}
    for own, leaf in leaves(value):
        path = (*override.key_or_group.split("."), *own)
        if (error := refusal(cfg, nested(path, leaf))) is not None:
            key = ".".join(path)
            problems[key] = wrong_value(key, leaf, error, cfg, cast(Any, override.config_loader))
    return problems


def _key_of(text: str) -> str:
    return text.partition("=")[0].strip(" +~")


def _is_lost(problem: Problem, base: _Base, wrong: Collection[str]) -> bool:
    """True if a problem may be a consequence of a rejected option, or of an invalid value at a key in `wrong`."""
    if "" in base.lost:  # the primary config was rejected
        return True
    has_lost_recipe = any(group not in base.cfg for group in base.lost)  # an option that sets other groups
    is_below = any(key == one or key.startswith(f"{one}.") for key in problem.keys for one in (*base.lost, *wrong))
    return is_below or (has_lost_recipe and isinstance(problem, UnknownKey))


@contextmanager
def _as_job(job: DictConfig) -> Iterator[None]:
    """Resolve `${hydra:...}` from `job` inside the `with` block, as if that job had started."""
    config = cast(Any, HydraConfig.instance())
    before, config.cfg = config.cfg, job
    try:
        yield
    finally:
        config.cfg = before
