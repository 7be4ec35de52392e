"""Check one composed config, then run its task in the folder that Hydra names."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, env_override, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from xlstm_hydra.configs import DistributedConfig, RunConfig, resolve_classes
from xlstm_hydra.errors import note_folder
from xlstm_hydra.hydra import REFUSED, load, located
from xlstm_hydra.preemption import refuse_to_begin, watched
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import replace_file

if TYPE_CHECKING:
    from xlstm_hydra.runs import RunFolder

CONFIG_FILE = "config.yaml"
"""The resolved config of a run, in its folder."""

TASKS = {
    "train": "xlstm_hydra.train",
    "evaluate": "xlstm_hydra.inference",
    "generate": "xlstm_hydra.inference",
    "plan": "xlstm_hydra.plan",
}
"""The module in which the function of a task is, under the task's name."""


def run_alone(cfg: DictConfig, context: HydraContext, resumed: str | None = None) -> float | None:
    """Check a config, then have Hydra do its task. Nothing is written before the config is known to be good, and what
    Hydra has written is taken back if the task rejects it.

    Args:
        cfg: the whole config, with Hydra's own part.
        context: Hydra's loader and callbacks.
        resumed: the place that `resume=` names, if the run continues in the folder of another.

    Returns:
        What the task returns.

    Raises:
        ConfigError: the config is wrong, or its folder cannot be used.
    """
    before = HydraConfig.instance().cfg
    try:
        path = _name_folder(cfg)
        return _run_alone(cfg, context, _load_for_all(cfg), _folder_named(path, resumed))
    finally:
        HydraConfig.instance().cfg = before


def _run_alone(cfg: DictConfig, context: HydraContext, run: RunConfig, folder: RunFolder) -> float | None:
    with _watched(run), _all_processes(run), _held(run, folder, [*_hydra_files(cfg, folder.path)]) as is_to_be_done:
        task = partial(_do, run=run, folder=folder, is_to_be_done=is_to_be_done)
        what = {"config": cfg, "config_name": cfg.hydra.job.config_name}
        context.callbacks.on_run_start(**what)
        done = _by_hydra(lambda: run_job(task, cfg, "hydra.run.dir", None, context), folder)
        context.callbacks.on_run_end(**what, job_return=done)
        if done.status == JobStatus.FAILED:
            with _folder_noted(_writes(run)):
                raise done._return_value
    result = done.return_value
    if run.task.name == "plan" and result == math.inf:
        from xlstm_hydra.sweep import DOES_NOT_FIT

        sys.exit(DOES_NOT_FIT)
    return result


def _by_hydra(run: Callable[[], JobReturn], folder: RunFolder) -> JobReturn:
    """Do something in which Hydra writes its record and starts its log. Errors of the task are in what it returns.

    Raises:
        ConfigError: Hydra cannot.
    """
    try:
        with folder.writing():
            return run()
    except ValueError as error:  # of the module `logging`, whose text is only "Unable to configure handler 'file'"
        cause = error.__cause__
        if isinstance(error, ConfigError) or cause is None:
            raise
        if isinstance(cause, OSError):
            raise folder.unusable(cause) from error
        raise ConfigError([Problem.about("hydra.job_logging", f"{error}: {cause}")]) from error


def run_task(cfg: DictConfig) -> float | None:
    """Do a job of a sweep: check its config, then do its task. Returns the loss that it ends with, if any, or the time
    of a step that is planned, for sweepers that minimize it."""
    from xlstm_hydra.runs import RunFolder
    from xlstm_hydra.sweep import record_if_job, resume_job

    config = distributed_of(cfg)
    process = config.process_info(os.environ) if config else None
    refuse_to_begin()
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    files = [folder.path / CONFIG_FILE]
    try:
        with record_if_job(cfg, process.process_id if process else 0) as job:
            with _folder_noted():
                run = resume_job(load(cfg))
            with _watched(run), _all_processes(run), job.failures(), _folder_noted(_writes(run)):
                with _held(run, folder, files) as is_to_be_done:
                    job.result = _do(cfg, run, folder, is_to_be_done)
        return job.result
    except ConfigError as error:
        if OmegaConf.select(cfg, "task.name") == "plan":
            return _keep_refusal(error)
        raise  # the sweep continues with the other jobs, and reports it at the end


def _located(error: ConfigError) -> ConfigError:
    """The same, with the file and the line of what is wrong in a file of the user's."""
    cfg, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    typed: Any = OmegaConf.to_container(cfg.overrides, resolve=False)
    return located(error, loader, cfg.job.config_name, [*typed["hydra"], *typed["task"]])


def _keep_refusal(error: ConfigError) -> float:
    """Leave for the table of a sweep of plans why this one is not there. Returns what one that does not fit does."""
    from xlstm_hydra.sweep import write_refusal

    write_refusal(error, Path(HydraConfig.get().runtime.output_dir))
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
            note_folder(error, HydraConfig.get().runtime.output_dir)
        raise


def _watched(run: RunConfig) -> AbstractContextManager[object]:
    """Training saves before it obeys a signal; what else is done ends with it."""
    return watched() if run.task.name == "train" else nullcontext()


def _all_processes(run: RunConfig) -> AbstractContextManager[None]:
    """Where there are several, what is done inside is done by all of them, or they end."""
    if run.distributed.process_info(os.environ) is None:
        return nullcontext()
    from xlstm_hydra.devices import together  # JAX wakes up here, to meet the other processes

    return together(run.distributed)


def _writes(run: RunConfig) -> bool:
    """Whether this process is the one that writes the run folder."""
    process = run.distributed.process_info(os.environ)
    return process is None or process.process_id == 0


def _name_folder(cfg: DictConfig) -> Path:
    """Return the folder of a run, and put it where the config may refer to it."""
    HydraConfig.instance().set_config(cfg)
    path = os.path.abspath(str(cfg.hydra.run.dir))
    with read_write(cfg.hydra.runtime), open_dict(cfg.hydra.runtime):
        cfg.hydra.runtime.output_dir = path
    HydraConfig.instance().set_config(cfg)
    return Path(path)


def _load_for_all(cfg: DictConfig) -> RunConfig:
    """Check the config as its task would find it. If it is wrong, the other processes end too."""
    variables: Any = OmegaConf.to_container(cfg.hydra.job.env_set, resolve=True)
    try:
        with env_override(variables):
            return load(cfg)
    except ConfigError as error:
        refuse_for_all(_located(error), distributed_of(cfg))


def _folder_named(path: Path, resumed: str | None) -> RunFolder:
    from xlstm_hydra.runs import RunFolder  # 15 ms, not for `--cfg job`

    if resumed is None:
        return RunFolder(path)
    fix = (
        f"resume={resumed} hydra.run.dir=DIR continues the run in another folder; --from {resumed} starts a new run "
        "with its config."
    )
    return RunFolder(path, {"resume": resumed}, fix)


def _hydra_files(cfg: DictConfig, folder: Path) -> Iterator[Path]:
    """The files that are written in a folder before the task begins: our config, Hydra's record, and logs."""
    yield folder / CONFIG_FILE
    if (record := cfg.hydra.output_subdir) is not None:
        yield from (folder / record / name for name in ("config.yaml", "hydra.yaml", "overrides.yaml"))
    for handler in (OmegaConf.select(cfg, "hydra.job_logging.handlers") or {}).values():
        if "filename" in handler:
            yield Path(handler.filename).absolute()


def _held(run: RunConfig, folder: RunFolder, files: list[Path]) -> AbstractContextManager[bool]:
    """Of several processes, the first one has a folder, which no other run may write in meanwhile. Gives whether this
    process has to write the config."""
    if not _writes(run):
        return nullcontext(False)
    return folder.held(files, lambda: _is_to_be_done(run, folder.path))


def _do(cfg: DictConfig, run: RunConfig, folder: RunFolder, is_to_be_done: bool) -> float | None:
    """Do the task of a run that has been checked, after its resolved config is written into its folder."""
    if is_to_be_done:
        record = copy.deepcopy(cfg)
        OmegaConf.update(record, "distributed", run.distributed.lasting().to_dict(), force_add=True)
        with folder.writing():
            replace_file(folder.path / CONFIG_FILE, OmegaConf.to_yaml(record, resolve=True))
    return _task(run.task.name)(run, folder.path, list(HydraConfig.get().overrides.task))


def _is_to_be_done(run: RunConfig, folder: Path) -> bool:
    """Whether the run has something left to do. What is in the folder, and the config that stands there, are not lost
    to a run that will be refused."""
    from xlstm_hydra.runs import find_starting_point, refuse_to_overwrite, step_of, verification

    with verification(run.checkpoint.verify):
        start = find_starting_point(run, folder)
        if not start.is_own:
            first_step = 0 if start.checkpoint is None else step_of(start.checkpoint)
            refuse_to_overwrite(folder, first_step, start.damaged)
        if start.checkpoint is None:
            return True
        if start.is_done(run.trainer.max_steps):
            return False
        from xlstm_hydra.train import read_resumed

        read_resumed(dataclasses.replace(run, model=resolve_classes(run.model)), start.checkpoint)
    return True


def refuse_for_all(error: ConfigError, config: DistributedConfig | None) -> NoReturn:
    """Reject a config. If process 0 is waiting for this one already, its config is good, and it gets the reason; if all
    have the same wrong config, nobody waits, and each ends on its own without JAX."""
    process = config.process_info(os.environ) if config else None
    if config is None or process is None or process.process_id == 0:
        raise error
    if _is_open(process.coordinator_address):
        from xlstm_hydra.devices import together

        with together(config):
            raise error
    print(f"xlstm-hydra: process {process.process_id}: {error}", file=sys.stderr)
    sys.exit(2)


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def distributed_of(cfg: DictConfig) -> DistributedConfig | None:
    """That part of a config; None where it makes no sense, which is a problem of its own."""
    try:
        node: Any = OmegaConf.to_container(cfg.distributed, resolve=True) if "distributed" in cfg else {}
        config = DistributedConfig.from_dict(DistributedConfig, node)
        config.process_info(os.environ)
    except REFUSED:
        return None
    return config
