"""The command `xlstm-hydra`: compose, check, then wake JAX up and do the task.

Exit status: 0 done, 1 failed while running, 2 the config or the command line is wrong, 3 what is planned does not fit
the devices, 75 asked by a signal to stop, and saved, so that the same command or `resume=RUN` goes on, 130 interrupted.
Of several processes all have the same one. What does not train ends with 143 where one gets SIGTERM.
`--cfg` prints the config, and ends with 2 if something in the user's own YAML files is wrong, which is reported too.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.errors import SearchPathException
from hydra.types import RunMode
from omegaconf import OmegaConf

import xlstm_hydra
from xlstm_hydra.configs import ConfigError, DistributedConfig, Problem
from xlstm_hydra.hydra import (
    REFUSED,
    UNREADABLE,
    VERSION_BASE,
    check_basic_sweep,
    check_engines,
    check_idle_engines,
    expand_from,
    expand_home,
    explain,
    file_problems,
    overrides_first,
    overrides_of_other,
    own_options,
    quote_texts,
)
from xlstm_hydra.job import RUN_NOTE, distributed_of, refuse, refuse_for_all, run_task
from xlstm_hydra.preemption import Preempted, watched

CONFIG_NAME = "config"


def main() -> None:
    """Entry point of the console command."""
    if "--version" in sys.argv[1:]:
        print(f"xlstm-hydra {xlstm_hydra.__version__} (Hydra {hydra.__version__})")
        return
    _see_current_folder()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print, and the message is ours to write
    try:
        sys.argv[1:] = expand_home(sys.argv[1:])
        check_engines(sys.argv[1:])
        sys.argv[1:] = _resumed_sweep(sys.argv[1:])
        sys.argv[1:] = overrides_first(quote_texts(expand_from(sys.argv[1:], _primary_search_path)))
        check_idle_engines(sys.argv[1:])
        _add_overrides(_quiet_overrides())
        args = get_args_parser().parse_intermixed_args()
        if is_sweep := _is_sweep(args):
            check_basic_sweep(args.overrides)
        with own_options(), watched() if is_sweep else nullcontext():
            hydra.main(config_path=None, config_name=CONFIG_NAME, **VERSION_BASE)(run_task)()
        if args.cfg in ("job", "all"):
            _check_files(args)
    except Preempted as error:
        if error.text:
            print(f"xlstm-hydra: {error}", file=sys.stderr)
        raise
    except KeyboardInterrupt as error:
        print(f"xlstm-hydra: {'; '.join(['interrupted', *map(str, error.args)])}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        started = any(note.startswith(RUN_NOTE) for note in getattr(error, "__notes__", ()))
        explained = None if wants_traceback or started else _explained(error)
        if explained is None:
            traceback.print_exc()
            sys.exit(1)
        if explained is error:
            refuse(explained)
        refuse_for_all(explained, _typed_distributed())


def _see_current_folder() -> None:
    """Find the user's own modules, which a console command would not."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _resumed_sweep(arguments: list[str]) -> list[str]:
    """The command line of a sweep that is to go on, in place of `resume_sweep=DIR`, and its current folder."""
    if not any(text.startswith("resume_sweep=") for text in arguments):
        return arguments
    from xlstm_hydra.sweep import expand_resume_sweep

    expanded = expand_resume_sweep(arguments)
    _see_current_folder()
    return expanded


def _typed_distributed() -> DistributedConfig | None:
    """What was typed of `distributed`, where the rest of the command line does not compose."""
    args = get_args_parser().parse_intermixed_args()
    typed = [text for text in args.overrides if text.startswith("distributed")]
    if _is_sweep(args) or not (typed or "SLURM_STEP_ID" in os.environ):
        return None
    try:
        return distributed_of(_loader(args).load_configuration(CONFIG_NAME, typed, RunMode.RUN))
    except UNREADABLE:
        return None


def _explained(error: Exception) -> ConfigError | None:
    """What Hydra refused, each mistake on its own; None for what is not the mistake of a user."""
    if isinstance(error, ConfigError) or not isinstance(error, UNREADABLE):
        return error if isinstance(error, ConfigError) else None
    if isinstance(error, SearchPathException):
        return ConfigError([Problem({}, str(error))])
    args = get_args_parser().parse_intermixed_args()
    name = args.config_name or CONFIG_NAME
    if not isinstance(error, REFUSED) and not file_problems(_loader(args), name, args.overrides):
        return None
    return ConfigError(explain(error, _loader(args), name, args.overrides, sweep=_is_sweep(args)))


def _check_files(args: Any) -> None:
    """Report what is wrong in the user's own files, which Hydra composes and shows without reading what it means.

    Raises:
        ConfigError: with every problem of a run that is in one of them.
    """
    if problems := file_problems(_loader(args), args.config_name or CONFIG_NAME, args.overrides):
        raise ConfigError(problems)


def _loader(args: Any) -> ConfigLoaderImpl:
    """What Hydra composes with, given these arguments."""
    search_path = create_automatic_config_search_path(__file__, None, args.config_path)
    if args.config_dir is not None:
        search_path.prepend("command-line", f"file://{os.path.abspath(args.config_dir)}")
    return ConfigLoaderImpl(search_path)


def _primary_search_path(args: Any) -> list[str]:
    """The `hydra.searchpath` of the primary config."""
    primary = _loader(args).repository.load_config(args.config_name or CONFIG_NAME)
    return list(OmegaConf.select(primary.config, "hydra.searchpath") or ()) if primary else []


def _is_sweep(args: Any) -> bool:
    return args.multirun or any(text.startswith("hydra.mode=MULTI") for text in args.overrides)


def _quiet_overrides() -> list[str]:
    """What keeps Hydra from making a folder and a log of its own, in every process of a run but the first.

    The number of this process is not known before the config is composed, which takes Hydra long enough to do it twice
    only where it may not be 0.
    """
    is_first_task = os.environ.get("SLURM_PROCID", "0") == "0"
    if is_first_task and len(sys.argv) == 1:
        return []
    args = get_args_parser().parse_intermixed_args()
    if _is_sweep(args) or args.cfg or args.help or args.hydra_help or args.info or args.shell_completion:
        return []
    if is_first_task and not _may_choose_distributed(args):
        return []
    try:
        cfg = _loader(args).load_configuration(args.config_name or CONFIG_NAME, args.overrides, RunMode.RUN)
    except UNREADABLE:
        return []  # Hydra meets the same error again, and it is told then
    config = distributed_of(cfg)
    place = config.place(os.environ) if config else None
    number = place.process_id if place else 0
    if number == 0:
        return []
    return ["hydra.run.dir=.", *overrides_of_other(number, cfg.hydra.runtime.choices["hydra/job_logging"])]


def _add_overrides(texts: list[str]) -> None:
    """Add to the command line, right after its last override: Hydra takes no second group of them behind a flag."""
    if not texts:
        return
    overrides = get_args_parser().parse_intermixed_args().overrides
    place = len(sys.argv) if not overrides else len(sys.argv) - sys.argv[::-1].index(overrides[-1])
    sys.argv[place:place] = texts


def _may_choose_distributed(args: Any) -> bool:
    """Whether the command line may choose or set it: by its name, or by files that are not ours, which may set
    what they like."""
    keys = [text.lstrip("+~").partition("=")[0] for text in args.overrides]
    typed = any(key.startswith(("distributed", "hydra.searchpath")) for key in keys)
    return typed or bool(args.config_name or args.config_dir or args.config_path)
