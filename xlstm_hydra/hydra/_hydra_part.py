"""Rules for the `hydra` node of a config, and for launchers and sweepers ("engines") and the packages they require."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

import hydra_plugins
from xlstm_hydra.conf_dir import conf_dir
from xlstm_hydra.configs import RunConfig
from xlstm_hydra.problems import ConfigError, Problem, Unread, nearest, show

_JOBLIB = ("hydra_plugins.hydra_joblib_launcher", "xlstm-hydra[joblib]")
_RAY = ("hydra_plugins.hydra_ray_launcher", "xlstm-hydra[ray]")
_SUBMITIT = ("submitit", "xlstm-hydra[slurm]")
_HYDRA_SUBMITIT = ("hydra_plugins.hydra_submitit_launcher", "xlstm-hydra[slurm]")
_OPTUNA = ("hydra_plugins.hydra_optuna_sweeper", "xlstm-hydra[optuna]")

ENGINES: dict[str, dict[str, tuple[str, str]]] = {
    "hydra/launcher": {
        "slurm": _SUBMITIT,
        "slurm_multinode": _SUBMITIT,
        "local": _SUBMITIT,
        "submitit_slurm": _HYDRA_SUBMITIT,
        "submitit_local": _HYDRA_SUBMITIT,
        "joblib": _JOBLIB,
        "ray": _RAY,
        "ray_aws": _RAY,
        "rq": ("hydra_plugins.hydra_rq_launcher", "hydra-rq-launcher"),
    },
    "hydra/sweeper": {
        "optuna": _OPTUNA,
        "nevergrad": ("hydra_plugins.hydra_nevergrad_sweeper", "hydra-nevergrad-sweeper"),
        "ax": ("hydra_plugins.hydra_ax_sweeper", "hydra-ax-sweeper"),
    },
}
"""Options that require an optional package: by group and option, the module to import and the package to install."""

_OTHER_FILES = ("--config", "-cp", "-cn", "-cd", "hydra.searchpath=", "+hydra.searchpath=")
"""Prefixes of arguments that add the user's own config files."""

_GROUPS = ("hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.")
"""Prefixes of overrides that only affect sweeps."""

REQUIRED = (*(field.name for field in dataclasses.fields(RunConfig) if field.name != "device"), "parallel")
"""Config groups for which every run must select an option."""

SEARCH_PATH = "hydra.searchpath"
_CALLBACKS = "hydra.callbacks"
TARGET_FORM = "A _target_ is the dotted path of a class that is installed or in the current folder."


def check_engines(arguments: Sequence[str]) -> None:
    """Check that the selected launcher and sweeper exist and are installed. Unknown names are not rejected if the
    user's config folders or other Hydra plugins may provide them.

    Args:
        arguments: command-line arguments.

    Raises:
        ConfigError: a launcher or sweeper is not installed or unknown. The error has the command that installs it, or
            the known names.
    """
    chosen = _chosen(arguments)
    problems = [problem for group, name in chosen if (problem := not_installed(group, name))]
    if not problems and not _may_have_others(arguments):
        problems = [_unknown(group, name) for group, name in chosen if name not in _known(group)]
    if problems:
        raise ConfigError(problems)


def not_installed(group: str, name: str) -> Problem | None:
    """Return a `Problem` if an option requires a package that is not installed; otherwise None."""
    module, package = ENGINES.get(group, {}).get(name, ("hydra", ""))
    if _is_importable(module):
        return None
    return Problem({group: name}, "is not installed", f"To install it: pip install '{package}'")


def _unknown(group: str, name: str) -> Problem:
    """Return the `Problem` for an unknown launcher or sweeper. Its fix lists the packages that provide others."""
    names: dict[str, list[str]] = {}
    for other, (_, package) in ENGINES[group].items():
        names.setdefault(package, []).append(other)
    provided = [f"pip install '{package}' provides {', '.join(others)}" for package, others in names.items()]
    known = nearest(name, _known(group))
    return Problem({group: name}, "no such option", f"{known} {'; '.join(provided)}.")


def _known(group: str) -> list[str]:
    """Return the options of a group, including those of optional packages that are not installed."""
    return sorted({"basic", *ENGINES[group], *(file.stem for file in (conf_dir() / group).glob("*.yaml"))})


def _may_have_others(arguments: Sequence[str]) -> bool:
    """True if the user's config folders or Hydra plugins other than those in `ENGINES` may provide options."""
    if any(text.startswith(_OTHER_FILES) for text in arguments):
        return True
    known = {module for group in ENGINES.values() for module, _ in group.values()}
    found = {f"hydra_plugins.{plugin.name}" for plugin in iter_modules(hydra_plugins.__path__)}
    return bool(found - known - {"hydra_plugins.xlstm_hydra_plugin"})


def require_engine(group: str, name: str) -> None:
    """Check that the package required by an option is installed.

    Raises:
        ConfigError: the package is not installed. The error has the command that installs it.
    """
    if problem := not_installed(group, name):
        raise ConfigError([problem])


def launcher_rules(launcher: Any) -> Iterator[Problem]:
    """Yield problems with settings that a third-party launcher would reject only after the sweep has started.

    Args:
        launcher: the `hydra.launcher` node.
    """
    if str(launcher._target_).endswith(".JoblibLauncher") and launcher.n_jobs == 0:
        fix = "Set the number of jobs that run at a time, or -1 for one per core."
        yield Problem({"hydra.launcher.n_jobs": 0}, "must not be 0", fix)


def check_unused_engines(arguments: Sequence[str]) -> None:
    """Reject launcher and sweeper overrides on the command line of a single run. In config files they are allowed.

    Args:
        arguments: command-line arguments.

    Raises:
        ConfigError: there are such overrides. The error lists all of them.
    """
    args = get_args_parser().parse_intermixed_args(list(arguments))
    if args.multirun or args.cfg or args.help or args.hydra_help or args.info:
        return
    if args.config_dir or args.config_path or args.config_name:
        return  # a file may set hydra.mode
    if any(text.lstrip("+").startswith(("hydra.mode=", "hydra.searchpath=")) for text in args.overrides):
        return
    if unused := [text for text in args.overrides if text.lstrip("+~").startswith(_GROUPS)]:
        raise ConfigError([Problem.about(text, "only applies to sweeps", "Add -m.") for text in unused])


def _chosen(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the launchers and sweepers that the arguments select, as (group, option) pairs."""
    pairs = [text.lstrip("+").partition("=") for text in arguments]
    return [(key, value.strip("'\"")) for key, _, value in pairs if key in ENGINES]


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def callbacks_of(cfg: DictConfig) -> Callbacks:
    """Return the Hydra callbacks of a composed config.

    Raises:
        ConfigError: the `hydra` node breaks rules.
    """
    if problems := [*hydra_rules(cfg)]:
        raise ConfigError(problems)
    return Callbacks(cfg)


def hydra_rules(cfg: DictConfig) -> Iterator[Problem]:
    """Yield a `Problem` for every broken rule of the `hydra` node."""
    yield from callback_problems(cfg)
    yield from unchosen_groups(cfg.hydra.runtime.choices, cfg)
    record = cfg.hydra.output_subdir
    if record is not None and (os.path.isabs(record) or ".." in Path(record).parts):
        fix = "For example .hydra, or null to not save Hydra's config files."
        yield Problem({"hydra.output_subdir": record}, "must be a relative path inside the run folder", fix)


def unchosen_groups(choices: Any, cfg: DictConfig) -> Iterator[Problem]:
    """Yield a `Problem` for each required group that a defaults list sets to null: the run would silently use the
    defaults of its config class.

    Args:
        choices: selected option of each group (`hydra.runtime.choices`).
        cfg: the composed config.
    """
    for group in REQUIRED:
        if group in choices and choices[group] is None and group not in cfg:
            fix = f"Choose an option: `override /{group}: OPTION` in the file, or {group}=OPTION on the command line."
            yield Unread({group: None}, "the group is required, but a defaults list sets it to null", fix)


def callback_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield a `Problem` for each callback without a `_target_`. Hydra would only log a warning, at each event."""
    callbacks: Any = OmegaConf.select(cfg, _CALLBACKS, throw_on_resolution_failure=False)
    if callbacks is None:
        return
    plain: Any = OmegaConf.to_container(callbacks, resolve=False)
    for name, value in plain.items():
        if not isinstance(value, dict):
            rule = f"expected a mapping with a _target_, got {show(value)}"
            yield Problem.about(f"{_CALLBACKS}.{name}", rule, TARGET_FORM)
        elif "_target_" not in value:
            yield Problem.about(f"{_CALLBACKS}.{name}._target_", "missing", TARGET_FORM)


def overrides_of_other(process: int, job_logging: str) -> list[str]:
    """Return the overrides for a process other than process 0: Hydra writes no files, and log messages start with the
    process number.

    Args:
        process: number of the process, from 1.
        job_logging: selected option of `hydra/job_logging`.
    """
    quiet = ["hydra.output_subdir=null"]
    if job_logging in ("none", "disabled"):
        return quiet
    prefix = f"hydra.job_logging.formatters.numbered.format='process {process}: %(message)s'"
    return [*quiet, "hydra/job_logging=xlstm_others", prefix]
