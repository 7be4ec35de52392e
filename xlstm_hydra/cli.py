"""The command `xlstm-hydra`: compose, check, then wake JAX up and do the task.

Exit status: 0 done, 1 failed while running, 2 the config or the command line is wrong, 3 what is planned does not fit
the devices, 75 asked by a signal to stop, and saved, so that the same command or `resume=RUN` goes on, 130 interrupted.
Of several processes all have the same one. What does not train ends with 143 where one gets SIGTERM.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import SearchPathException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import xlstm_hydra
from xlstm_hydra.configs import ConfigError, DistributedConfig, Problem, RunConfig
from xlstm_hydra.hydra import (
    REFUSED,
    VERSION_BASE,
    check_engines,
    check_idle_engines,
    expand_from,
    explain,
    load,
    overrides_of_other,
    own_options,
    quote_texts,
    resolve_classes,
)
from xlstm_hydra.preemption import Preempted, watched

CONFIG_NAME = "config"
RUN_NOTE = "The run's folder is "
"""How the note begins that marks an error as one of a run that had started."""

TASKS = {
    "train": "xlstm_hydra.train",
    "evaluate": "xlstm_hydra.inference",
    "generate": "xlstm_hydra.inference",
    "plan": "xlstm_hydra.plan_cli",
}
"""The module in which the function of a task is, under the task's name."""

DOES_NOT_FIT = 3
"""Exit status of a plan whose devices have too little memory."""


def run_task(cfg: DictConfig) -> float | None:
    """Check the config, then do its task. Returns the loss that it ends with, if any, or the time of a step that is
    planned, for sweepers that minimise it."""
    from xlstm_hydra.sweep import going_on, recorded  # 15 ms, not for `--cfg job`

    config = _distributed(cfg)
    place = config.place(os.environ) if config else None
    try:
        with recorded(cfg, place.process_id if place else 0) as job:
            with _folder_noted():
                run = going_on(load(cfg))
            with _watched(run), _all_processes(run), job.failures(), _folder_noted(_writes(run)):
                with _run_folder(cfg, run) as folder:
                    result = _task(run.task.name)(run, folder, list(HydraConfig.get().overrides.task))
            job.result = result
        if run.task.name == "plan" and result == math.inf and HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(DOES_NOT_FIT)
        return result
    except ConfigError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            if cfg.task.name == "plan":
                return _keep_refusal(error)
            raise  # Hydra goes on with the other jobs, and tells it at the end
        _refuse_for_all(error, config)


def _keep_refusal(error: ConfigError) -> float:
    """Leave for the table of a sweep of plans why this one is not there. Returns what one that does not fit does."""
    from xlstm_hydra.compare_plans import keep_refusal

    keep_refusal(error, Path(HydraConfig.get().runtime.output_dir))
    return math.inf


def _task(name: str) -> Callable[[RunConfig, Path, list[str]], float | None]:
    """The function that does a task. JAX wakes up here, once the config is known to be good."""
    return getattr(importlib.import_module(TASKS[name]), name)


@contextmanager
def _folder_noted(is_ours: bool = True) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_ours and not isinstance(error, ConfigError):
            error.add_note(f"{RUN_NOTE}{HydraConfig.get().runtime.output_dir}")
        raise


def _watched(run: RunConfig) -> AbstractContextManager[object]:
    """Training saves before it obeys a signal; what else is done ends with it."""
    return watched() if run.task.name == "train" else nullcontext()


def _all_processes(run: RunConfig) -> AbstractContextManager[None]:
    """Where there are several, what is done inside is done by all of them, or they end."""
    if run.distributed.place(os.environ) is None:
        return nullcontext()
    from xlstm_hydra.train import together  # JAX wakes up here, to meet the other processes

    return together(run.distributed)


def _writes(run: RunConfig) -> bool:
    """Whether this process is the one that writes the run folder."""
    place = run.distributed.place(os.environ)
    return place is None or place.process_id == 0


@contextmanager
def _run_folder(cfg: DictConfig, run: RunConfig) -> Iterator[Path]:
    """Hydra's folder for this job, with the resolved config in it. Of several processes, the first one has a folder,
    which no other run may write in meanwhile."""
    from xlstm_hydra.metadata import hold_folder  # 15 ms, not for `--cfg job`

    folder = Path(HydraConfig.get().runtime.output_dir)
    if not _writes(run):
        yield folder
        return
    with hold_folder(folder):
        _refuse_to_continue(run, folder)
        record = copy.deepcopy(cfg)
        record.distributed.merge_with(run.distributed.lasting().to_dict())
        with _lasting(folder / "config.yaml", OmegaConf.to_yaml(record, resolve=True)):
            yield folder


@contextmanager
def _lasting(file: Path, text: str) -> Iterator[None]:
    """Write a file, which is what it was before if the run is refused."""
    before = file.read_text(encoding="utf-8") if file.exists() else None
    file.write_text(text, encoding="utf-8")
    try:
        yield
    except ConfigError:
        if before is not None:
            file.write_text(before, encoding="utf-8")
        raise


def _refuse_to_continue(run: RunConfig, folder: Path) -> None:
    """Make sure that nothing in the folder, nor the config that stands there, is lost to a run that will be refused."""
    from xlstm_hydra.metadata import find_start, refuse_to_overwrite, step_of

    start = find_start(run, folder)
    if not start.is_own:
        refuse_to_overwrite(folder, 0 if start.checkpoint is None else step_of(start.checkpoint))
    if start.checkpoint is None or start.is_done(run.trainer.max_steps):
        return
    from xlstm_hydra.train import read_resumed

    read_resumed(dataclasses.replace(run, model=resolve_classes(run.model)), start.checkpoint)


def main() -> None:
    """Entry point of the console command."""
    if "--version" in sys.argv[1:]:
        print(f"xlstm-hydra {xlstm_hydra.__version__} (Hydra {hydra.__version__})")
        return
    _see_current_folder()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print, and the message is ours to write
    try:
        check_engines(sys.argv[1:])
        sys.argv[1:] = _resumed_sweep(sys.argv[1:])
        sys.argv[1:] = quote_texts(expand_from(sys.argv[1:], _primary_search_path))
        check_idle_engines(sys.argv[1:])
        _add_overrides(_quiet_overrides())
        is_sweep = _is_sweep(get_args_parser().parse_intermixed_args())
        with own_options(), watched() if is_sweep else nullcontext():
            hydra.main(config_path=None, config_name=CONFIG_NAME, **VERSION_BASE)(run_task)()
    except Preempted as error:
        if error.text:
            print(f"xlstm-hydra: {error}", file=sys.stderr)
        raise
    except KeyboardInterrupt as error:
        print(f"xlstm-hydra: {'; '.join(['interrupted', *map(str, error.args)])}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        started = any(note.startswith(RUN_NOTE) for note in getattr(error, "__notes__", ()))
        if wants_traceback or started or not isinstance(error, REFUSED):
            traceback.print_exc()
            sys.exit(1)
        if isinstance(error, ConfigError):
            _refuse(error)
        _refuse_for_all(_explained(error), _typed_distributed())


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


def _refuse_for_all(error: ConfigError, config: DistributedConfig | None) -> NoReturn:
    """Refuse a config. Where process 0 is waiting for this one already, its config is good, and it is told; where all
    have the same bad config, nobody waits, and each ends on its own without JAX."""
    place = config.place(os.environ) if config else None
    if config is not None and place is not None and place.process_id > 0 and _is_open(place.coordinator_address):
        from xlstm_hydra.train import together

        with together(config):
            raise error
    _refuse(error, place.process_id if place else 0)


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def _typed_distributed() -> DistributedConfig | None:
    """What was typed of `distributed`, where the rest of the command line does not compose."""
    args = get_args_parser().parse_intermixed_args()
    typed = [text for text in args.overrides if text.startswith("distributed")]
    if _is_sweep(args) or not (typed or "SLURM_STEP_ID" in os.environ):
        return None
    try:
        return _distributed(_loader(args).load_configuration(CONFIG_NAME, typed, RunMode.RUN))
    except REFUSED:
        return None


def _refuse(error: ConfigError, process: int = 0) -> NoReturn:
    print(f"xlstm-hydra: {f'process {process}: ' if process else ''}{error}", file=sys.stderr)
    sys.exit(2)


def _explained(error: Exception) -> ConfigError:
    """What Hydra refused, each mistake on its own."""
    if isinstance(error, SearchPathException):
        return ConfigError([Problem({}, str(error))])
    args = get_args_parser().parse_intermixed_args()
    name = args.config_name or CONFIG_NAME
    return ConfigError(explain(error, _loader(args), name, args.overrides, sweep=_is_sweep(args)))


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
    except REFUSED:
        return []  # Hydra meets the same error again, and it is told then
    config = _distributed(cfg)
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


def _distributed(cfg: DictConfig) -> DistributedConfig | None:
    """That part of a config; None where it makes no sense, which is a problem of its own."""
    try:
        node: Any = OmegaConf.to_container(cfg.distributed, resolve=True) if "distributed" in cfg else {}
        config = DistributedConfig.from_dict(DistributedConfig, node)
        config.place(os.environ)
    except REFUSED:
        return None
    return config
