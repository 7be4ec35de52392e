"""Find every error in a command line that Hydra rejected, including errors in the user's config files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.problems import ConfigError, Problem

from ._composer import Composer
from ._interpolations import whole
from ._lenient import compose_files
from ._omegaconf import REFUSED
from ._own_files import Composed, FileProblem
from ._points import by_job
from ._refusals import several_for_hydra, unknown_key, unset_variable
from ._search_path import has_own_files
from ._split import MAX_JOBS, first_point, split, typed_limit


def explain(
    error: Exception, config_loader: Any, config_name: str | None, overrides: Sequence[str], *, sweep: bool
) -> list[Problem]:
    """Return a `Problem` for every error in a command line that Hydra rejected.

    Args:
        error: exception raised by Hydra.
        config_loader: Hydra's config loader.
        config_name: name of the primary config.
        overrides: command-line overrides.
        sweep: True if overrides may have several values.
    """
    composer = _composer(config_loader, config_name)
    try:
        if not sweep:
            problems = composer.check(overrides, leniently=composer.has_files).problems
            problems = problems or composer.check(overrides, leniently=True).problems
        else:
            readable, problems, unread = composer.readable(overrides)
            own = [one for one in readable if one.is_sweep_override() and one.is_hydra_override()]
            problems += map(several_for_hydra, own)
            readable = [one for one in readable if one not in own]
            points, too_many = _points_of(readable)
            problems += too_many
            found = [composer.check(point, unread=unread).problems for point in points]
            if not any(found) and points:
                problems += composer.check(points[0], unread=unread, leniently=True).problems
            problems += by_job(points, {number: each for number, each in enumerate(found) if each})
    except ConfigError as other:
        problems = other.problems
    except REFUSED as other:  # an error in the primary config, or syntax of another sweeper
        problems = [whole(other)]
    except KeyError as other:
        if (problem := unset_variable(other)) is None:
            raise
        problems = [problem]
    return problems or [whole(error)]


def _composer(config_loader: Any, config_name: str | None) -> Composer:
    """Make a `Composer` that uses one of Hydra's config loaders."""

    def compose(choices: Sequence[str]) -> DictConfig:
        return config_loader.load_configuration(config_name, list(choices), run_mode=RunMode.RUN)

    def compose_leniently(choices: Sequence[str]) -> Composed:
        return compose_files(config_loader, config_name, choices)

    parser = OverridesParser.create(config_loader)

    def parse(text: str) -> Override:
        override = parser.parse_override(text)
        override.config_loader = config_loader  # glob(...) looks up options with this loader
        return override

    return Composer(parse, compose, compose_leniently, has_own_files(config_loader))


def file_problems(config_loader: Any, config_name: str | None, overrides: Sequence[str]) -> list[Problem]:
    """Return the problems located in the user's config files.

    Args:
        config_loader: Hydra's config loader.
        config_name: name of the primary config.
        overrides: command-line overrides. Overrides with several values are ignored.
    """
    if not has_own_files(config_loader, overrides):
        return []
    composer = _composer(config_loader, config_name)
    readable, _, unread = composer.readable(overrides)
    single = [str(one.input_line) for one in readable if not one.is_sweep_override()]
    problems = composer.check(single, unread=unread).problems
    return [problem for problem in problems if isinstance(problem, FileProblem)]


def located(error: ConfigError, config_loader: Any, config_name: str | None, overrides: Sequence[str]) -> ConfigError:
    """Return the same error, with file and line added to each problem located in the user's config files.

    Args:
        error: the error to improve.
        config_loader: Hydra's config loader.
        config_name: name of the primary config.
        overrides: overrides of the run.
    """
    if not has_own_files(config_loader, overrides):
        return error
    point = _composer(config_loader, config_name).check(overrides)
    return ConfigError(point.problems) if point.problems else error


def package_problem(package: str, cfg: DictConfig, kind: str) -> Problem | None:
    """Return a `Problem` if the `--package` to print does not exist in the config.

    Args:
        package: value of `--package`.
        cfg: the composed config.
        kind: value of `--cfg`: `job`, `hydra` or `all`.
    """
    whole = OmegaConf.masked_copy(
        cfg, [str(key) for key in cfg if kind == "all" or (key == "hydra") == (kind == "hydra")]
    )
    if OmegaConf.select(whole, package) is not None:
        return None
    key = f"--package={package}"
    problem = unknown_key(package, whole)
    return Problem.about(key, problem.rule, problem.fix) if problem else Problem.about(key, "the value is null")


def _points_of(overrides: Sequence[Override]) -> tuple[list[list[str]], list[Problem]]:
    """Return the points of a sweep, and a problem if there are too many. Only the first point is returned if there are
    too many, or if the sweep is an Optuna study."""
    is_study = any(override.key_or_group == "hydra/sweeper" and override.value() == "optuna" for override in overrides)
    if is_study:
        return [first_point(overrides)], []
    num_samples = 1 if any(override.is_interval_sweep() for override in overrides) else None
    try:
        return split(overrides, num_samples, max_jobs=typed_limit(overrides)), []
    except ConfigError as error:
        if error.problems[0].keys != (MAX_JOBS,):
            raise
        return [first_point(overrides)], error.problems
