"""The `xlstm-hydra` command: compose a config, check it, then load JAX and run the task.

Exit status:
    0: success.
    1: the run failed.
    2: the config or the command line is invalid. `--cfg` prints the config even if the user's own config files have
       errors, but then also exits with 2.
    3: the planned run does not fit on the devices.
    75: stopped by a signal after saving a checkpoint. To continue, run the same command again or use `resume=RUN`.
    130: interrupted.
    143: SIGTERM during a task other than training.

All processes of a run exit with the same status.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import env_override
from hydra.errors import SearchPathException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import xlstm_hydra
from xlstm_hydra.configs import DistributedConfig
from xlstm_hydra.errors import has_started
from xlstm_hydra.hydra import (
    REFUSED,
    REQUIRED,
    VERSION_BASE,
    check_engines,
    check_primary,
    check_unused_engines,
    expand_from,
    expand_home,
    has_own_files,
    is_sweep,
    overrides_first,
    own_options,
    parse_known_flags,
    quote_texts,
    search_path,
    verifies,
)
from xlstm_hydra.own_modules import find_own_modules
from xlstm_hydra.preemption import watched
from xlstm_hydra.problems import ConfigError, Problem

from ._messages import command

CONFIG_NAME = "config"

_COMPOSERS = {"hydra", "hydra_plugins", "omegaconf", "yaml", "antlr4"}
"""Packages whose `ValueError`s are user errors. A `ValueError` raised in any other package is a bug."""


def main() -> None:
    """Entry point of the console command."""
    gc.disable()  # until a run starts, because composing creates little garbage
    try:
        with command("xlstm-hydra"):
            _dispatch()
    finally:
        gc.enable()


def _dispatch() -> None:
    """Run the command given by `sys.argv`."""
    with _refusals_explained(), _verification(sys.argv[1:]):
        if "--version" in sys.argv[1:]:
            from ._version import print_version

            print_version(xlstm_hydra.__version__)
            return
        if _asks_for_reference(sys.argv[1:]):
            from ._reference import shows_reference

            if shows_reference(sys.argv[1:]):
                return
        sys.argv[1:] = expand_home(sys.argv[1:])
        check_primary(parse_known_flags(), CONFIG_NAME)
        find_own_modules(_named_folders(sys.argv[1:]))
        resumed = _resumed_run(sys.argv[1:])
        check_engines(sys.argv[1:])
        sys.argv[1:] = _resumed_sweep(sys.argv[1:])
        sys.argv[1:] = overrides_first(quote_texts(expand_from(sys.argv[1:], _primary_search_path)))
        check_unused_engines(sys.argv[1:])
        args = get_args_parser().parse_intermixed_args()
        app = hydra.main(config_path=None, config_name=CONFIG_NAME, **VERSION_BASE)(_run_job)
        with own_options():
            if _shows(args):
                _check_package(args)
                with env_override({"HYDRA_FULL_ERROR": "1"}):  # makes Hydra raise errors instead of printing them
                    app()
                if args.cfg in ("job", "all"):
                    _check_files(args)
            else:
                _refuse_removed(args.overrides)
                _run(args, resumed)


def _asks_for_reference(arguments: list[str]) -> bool:
    return any(text.partition("=")[0] in ("--info", "-i", "--schema") for text in arguments)


def _verification(arguments: list[str]) -> AbstractContextManager[None]:
    """Disable the verification of checkpoint files inside the `with` block if the arguments disable it."""
    if verifies(arguments):
        return nullcontext()
    from xlstm_hydra.runs import verification

    return verification(False)


def _named_folders(arguments: list[str]) -> list[Path]:
    """Return the folders of the saved runs and sweeps that the arguments name."""
    if not any(word in text for text in arguments for word in ("from", "resume", "checkpoint", "ckpt:")):
        return []
    from xlstm_hydra.runs import named_folders

    return named_folders(arguments)


def _refuse_removed(overrides: list[str]) -> None:
    """Reject overrides that remove a required group (`~GROUP`): Hydra would fail, or record values that differ from
    those of the run."""
    problems = []
    for text in overrides:
        key = text.removeprefix("~").partition("=")[0]
        if text.startswith("~") and (key in REQUIRED or key.startswith("hydra/")):
            rule = "the group is required" if key in REQUIRED else "is required by Hydra"
            problems.append(Problem.about(text, rule, f"To select another option, write {key}=OPTION."))
    if problems:
        raise ConfigError(problems)


def _run_job(cfg: DictConfig) -> float | None:
    """Run a job of a sweep, and return the value to minimize. Hydra requires a task function even to print a config."""
    from ._run import run_sweep_job  # takes 30 ms, so not imported for `--cfg job`

    return run_sweep_job(cfg)


def _run(args: Any, resumed: str | None) -> None:
    """Compose the config, and start a run or a sweep. `hydra.main` would compose twice, once to determine the mode.

    Args:
        args: parsed command-line arguments.
        resumed: the run named by `resume=RUN`, if it continues in its own run folder.
    """
    from xlstm_hydra.hydra import callbacks_of, check_basic_sweep, overrides_of_other

    from ._run import distributed_of, process_number, run_single

    gc.enable()
    atexit.unregister(gc.freeze)  # objects of a run must be freed at exit
    own = Hydra.create_main_hydra2("xlstm-hydra", search_path(args))
    try:
        if is_sweep(args):
            check_basic_sweep(args.overrides)
            with watched():
                own.multirun(args.config_name or CONFIG_NAME, _run_job, _in_mode(args.overrides, RunMode.MULTIRUN))
            return
        cfg = _compose(own, args, args.overrides)
        if (number := process_number(distributed_of(cfg))) > 0:  # only process 0 writes the run folder and logs
            quiet = overrides_of_other(number, cfg.hydra.runtime.choices.get("hydra/job_logging"))
            cfg = _compose(own, args, [*args.overrides, "hydra.run.dir=.", *quiet])
        run_single(cfg, HydraContext(config_loader=own.config_loader, callbacks=callbacks_of(cfg)), resumed)
    finally:
        GlobalHydra.instance().clear()


def _compose(own: Hydra, args: Any, overrides: list[str]) -> DictConfig:
    texts = _in_mode(overrides, RunMode.RUN)
    return own.compose_config(args.config_name or CONFIG_NAME, texts, RunMode.RUN, with_log_configuration=True)


def _in_mode(overrides: list[str], mode: RunMode) -> list[str]:
    """Return the overrides, with `hydra.mode` appended if it is not set, as Hydra does."""
    is_chosen = any(text.startswith("hydra.mode=") for text in overrides)
    return [*overrides, *([] if is_chosen else [f"hydra.mode={mode.name}"])]


def _shows(args: Any) -> bool:
    """True if the arguments request output from Hydra, such as the config or help, instead of a run."""
    asked = args.cfg or args.help or args.hydra_help or args.info
    return bool(asked or args.resolve or args.experimental_rerun)


@contextmanager
def _refusals_explained() -> Iterator[None]:
    """Convert an error that Hydra raises during composition to a `ConfigError` that lists all errors."""
    try:
        yield
    except Exception as error:
        if (found := _explained(error)) is None:
            raise
        from ._run import refuse_for_all

        found.__cause__ = error
        refuse_for_all(found, _typed_distributed())


def _is_refusal(error: Exception) -> bool:
    """True for a user error that Hydra rejected; False for a bug, such as a `ValueError` from another package."""
    if _is_from_defaults_list(error):
        return True
    if not isinstance(error, REFUSED):
        return False
    if not isinstance(error, ValueError | AssertionError) or isinstance(error, OmegaConfBaseException):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    return next((name for name in reversed(names) if name not in sys.stdlib_module_names), "") in _COMPOSERS


def _is_from_defaults_list(error: Exception) -> bool:
    """True for the `TypeError` that Hydra raises if an option is not a string, as in `model=[1]`."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, TypeError) and frames[-1].f_globals.get("__name__") == "hydra._internal.defaults_list"


def _resumed_run(arguments: list[str]) -> str | None:
    """Return the run named by `resume=RUN`, if it continues in its own run folder; otherwise None."""
    if any(text.lstrip("+").startswith("hydra.run.dir=") for text in arguments):
        return None
    runs = [text.partition("=")[2].strip("'\"") for text in arguments if text.startswith("resume=")]
    return runs[0] if runs else None


def _resumed_sweep(arguments: list[str]) -> list[str]:
    """Replace `resume_sweep=DIR` with that sweep's command line, and change to the folder the sweep was started in."""
    if not any(text.startswith("resume_sweep=") for text in arguments):
        return arguments
    from xlstm_hydra.sweep import expand_resume_sweep

    return expand_resume_sweep(arguments)


def _typed_distributed() -> DistributedConfig | None:
    """Return the config of the group `distributed`, composed from the overrides of this group only, because the whole
    command line cannot be composed. None for a sweep, a single process, or invalid overrides."""
    args = get_args_parser().parse_intermixed_args()
    typed = [text for text in args.overrides if text.startswith("distributed")]
    if is_sweep(args) or not (typed or "SLURM_STEP_ID" in os.environ):
        return None
    from xlstm_hydra.hydra import UNREADABLE

    from ._run import distributed_of

    try:
        return distributed_of(_loader(args).load_configuration(CONFIG_NAME, typed, RunMode.RUN))
    except UNREADABLE:
        return None


def _explained(error: Exception) -> ConfigError | None:
    """Return a `ConfigError` that lists all user errors, given an error raised by Hydra; None if the error already is a
    `ConfigError`, comes from a run that has started, or is a bug."""
    if isinstance(error, ConfigError) or has_started(error):
        return None
    from xlstm_hydra.hydra import UNREADABLE, explain, file_problems, unknown_engine, unset_variable

    if isinstance(error, SearchPathException):
        return ConfigError([Problem({}, str(error))])
    if problem := unset_variable(error) or unknown_engine(error):
        return ConfigError([problem])
    if not isinstance(error, UNREADABLE) and not _is_from_defaults_list(error):
        return None
    args = get_args_parser().parse_intermixed_args()
    name = args.config_name or CONFIG_NAME
    if not _is_refusal(error) and not file_problems(_loader(args), name, args.overrides):
        return None
    return ConfigError(explain(error, _loader(args), name, args.overrides, sweep=is_sweep(args)))


def _check_package(args: Any) -> None:
    """Check that the `--package` to print exists in the config.

    Raises:
        ConfigError: the package does not exist.
    """
    if args.cfg is None or args.package in (None, "_global_"):
        return
    from xlstm_hydra.hydra import package_problem

    cfg = _loader(args).load_configuration(args.config_name or CONFIG_NAME, args.overrides, RunMode.RUN)
    if problem := package_problem(args.package, cfg, args.cfg):
        raise ConfigError([problem])


def _check_files(args: Any) -> None:
    """Check the user's own config files, whose values Hydra has printed without checking.

    Raises:
        ConfigError: the files have errors. The error lists all of them.
    """
    loader = _loader(args)
    if not has_own_files(loader, args.overrides):
        return
    from xlstm_hydra.hydra import file_problems

    if problems := file_problems(loader, args.config_name or CONFIG_NAME, args.overrides):
        raise ConfigError(problems)


def _loader(args: Any) -> ConfigLoaderImpl:
    """Return a Hydra config loader with the search path given by the arguments."""
    return ConfigLoaderImpl(search_path(args))


def _primary_search_path(args: Any) -> list[str]:
    """Return the `hydra.searchpath` of the primary config."""
    primary = _loader(args).repository.load_config(args.config_name or CONFIG_NAME)
    return list(OmegaConf.select(primary.config, "hydra.searchpath") or ()) if primary else []
