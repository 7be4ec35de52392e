"""Check a composed config, then run its task in Hydra's output folder: a single run, or a job of a sweep."""

from __future__ import annotations

import copy
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, env_override, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from xlstm_hydra import tasks
from xlstm_hydra.configs import DistributedConfig, RunConfig
from xlstm_hydra.errors import note_folder
from xlstm_hydra.hydra import REFUSED, load, located
from xlstm_hydra.preemption import refuse_to_begin, watched
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import CONFIG_FILE, RunFolder, replace_file


def run_single(cfg: DictConfig, context: HydraContext, resumed: str | None = None) -> float | None:
    """Check a config, then run its task through Hydra. Nothing is written if the config is invalid. If the task itself
    rejects the config, Hydra's files are removed.

    Args:
        cfg: the whole config, including the `hydra` node.
        context: Hydra's config loader and callbacks.
        resumed: the run named by `resume=RUN`, if this run continues in its run folder.

    Returns:
        The result of the task.

    Raises:
        ConfigError: the config is invalid, or the run folder cannot be used.
    """
    before = HydraConfig.instance().cfg
    try:
        path = _name_folder(cfg)
        return _run_in_folder(cfg, context, _load_for_all(cfg), _run_folder(path, resumed))
    finally:
        HydraConfig.instance().cfg = before


def run_sweep_job(cfg: DictConfig) -> float | None:
    """Check the config of a sweep job, then run its task.

    Returns:
        The value to minimize: the final loss, or for a plan the estimated time of a step in seconds (infinity if the
        plan is invalid or does not fit). None: the task has no such value.
    """
    from xlstm_hydra.sweep import record_if_job, resume_job

    refuse_to_begin()
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    try:
        with record_if_job(cfg, process_number(distributed_of(cfg))) as job:
            with _folder_noted():
                run = resume_job(load(cfg))
            with _watched(run), _all_processes(run), job.failures(), _folder_noted(_writes(run)):
                with _hold(run, folder, [folder.path / CONFIG_FILE]) as is_to_be_written:
                    job.result = _write_and_run(cfg, run, folder, is_to_be_written)
        return job.result
    except ConfigError as error:
        if OmegaConf.select(cfg, "task.name") != "plan":
            raise  # the sweep continues with the other jobs, and reports the error at the end
        from xlstm_hydra.sweep import write_refusal  # the error is shown in the table of plans

        write_refusal(error, folder.path)
        return math.inf  # as for a plan that does not fit


def _run_in_folder(cfg: DictConfig, context: HydraContext, run: RunConfig, folder: RunFolder) -> float | None:
    files = [*_files_before_task(cfg, folder.path)]
    with _watched(run), _all_processes(run), _hold(run, folder, files) as is_to_be_written:
        task = partial(_write_and_run, run=run, folder=folder, is_to_be_written=is_to_be_written)
        event = {"config": cfg, "config_name": cfg.hydra.job.config_name}
        context.callbacks.on_run_start(**event)
        done = _run_by_hydra(lambda: run_job(task, cfg, "hydra.run.dir", None, context), folder)
        context.callbacks.on_run_end(**event, job_return=done)
        if done.status == JobStatus.FAILED:
            with _folder_noted(_writes(run)):
                raise done._return_value
    result = done.return_value
    if run.task.name == "plan" and result == math.inf:
        from xlstm_hydra.sweep import DOES_NOT_FIT

        sys.exit(DOES_NOT_FIT)
    return result


def _run_by_hydra(run: Callable[[], JobReturn], folder: RunFolder) -> JobReturn:
    """Run a job through Hydra, which writes the `.hydra` files and configures logging before it calls the task.

    Returns:
        The result of the job, which contains the exception if the task raised one.

    Raises:
        ConfigError: Hydra cannot start the job.
    """
    try:
        with folder.writing():
            return run()
    except ValueError as error:  # raised by `logging` with the message "Unable to configure handler 'file'"
        cause = error.__cause__
        if isinstance(error, ConfigError) or cause is None:
            raise
        if isinstance(cause, OSError):
            raise folder.unusable(cause) from error
        raise ConfigError([Problem.about("hydra.job_logging", f"{error}: {cause}")]) from error


def _write_and_run(cfg: DictConfig, run: RunConfig, folder: RunFolder, is_to_be_written: bool) -> float | None:
    """Write the resolved config to the run folder if `is_to_be_written`, then run the task."""
    if is_to_be_written:
        record = copy.deepcopy(cfg)
        OmegaConf.update(record, "distributed", run.distributed.lasting().to_dict(), force_add=True)
        with folder.writing():
            replace_file(folder.path / CONFIG_FILE, OmegaConf.to_yaml(record, resolve=True))
    return tasks.run_task(run, folder.path, list(HydraConfig.get().overrides.task))


# ---- the folder


def _name_folder(cfg: DictConfig) -> Path:
    """Return the path of the run folder, and set `hydra.runtime.output_dir` to it, because the config may refer to this
    key."""
    HydraConfig.instance().set_config(cfg)
    path = os.path.abspath(str(cfg.hydra.run.dir))
    with read_write(cfg.hydra.runtime), open_dict(cfg.hydra.runtime):
        cfg.hydra.runtime.output_dir = path
    HydraConfig.instance().set_config(cfg)
    return Path(path)


def _run_folder(path: Path, resumed: str | None) -> RunFolder:
    if resumed is None:
        return RunFolder(path)
    fix = (
        f"resume={resumed} hydra.run.dir=DIR continues the run in another folder; --from {resumed} starts a new run "
        "with the same config."
    )
    return RunFolder(path, {"resume": resumed}, fix)


def _files_before_task(cfg: DictConfig, folder: Path) -> Iterator[Path]:
    """Yield the files written before the task starts: the run's config, Hydra's `.hydra` files, and log files."""
    yield folder / CONFIG_FILE
    if (record := cfg.hydra.output_subdir) is not None:
        yield from (folder / record / name for name in ("config.yaml", "hydra.yaml", "overrides.yaml"))
    for handler in (OmegaConf.select(cfg, "hydra.job_logging.handlers") or {}).values():
        if "filename" in handler:
            yield Path(handler.filename).absolute()


def _hold(run: RunConfig, folder: RunFolder, files: list[Path]) -> AbstractContextManager[bool]:
    """Lock the run folder against other runs inside the `with` block, in process 0 only. The `with` statement yields
    True if this process must write the config file."""
    if not _writes(run):
        return nullcontext(False)
    return folder.held(files, lambda: tasks.is_unfinished(run, folder.path))


@contextmanager
def _folder_noted(is_ours: bool = True) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_ours and not isinstance(error, ConfigError):
            note_folder(error, HydraConfig.get().runtime.output_dir)
        raise


# ---- one of several processes


def _watched(run: RunConfig) -> AbstractContextManager[object]:
    """Inside the `with` block, handle signals if the task is training, so that it saves a checkpoint before it stops.
    Other tasks stop immediately."""
    return watched() if run.task.name == "train" else nullcontext()


def _all_processes(run: RunConfig) -> AbstractContextManager[None]:
    """Connect all processes of a run inside the `with` block. If one of them fails, all exit."""
    if run.distributed.process_info(os.environ) is None:
        return nullcontext()
    from xlstm_hydra.devices import together  # imports JAX, which connects the processes

    return together(run.distributed)


def _writes(run: RunConfig) -> bool:
    """True for the process that writes the run folder."""
    return process_number(run.distributed) == 0


def process_number(config: DistributedConfig | None) -> int:
    """Return the number of this process; 0 if the run has a single process."""
    process = config.process_info(os.environ) if config else None
    return process.process_id if process else 0


def _load_for_all(cfg: DictConfig) -> RunConfig:
    """Check the config with the environment variables in `hydra.job.env_set`, and return the run. If the config is
    invalid, all processes of the run exit."""
    variables: Any = OmegaConf.to_container(cfg.hydra.job.env_set, resolve=True)
    try:
        with env_override(variables):
            return load(cfg)
    except ConfigError as error:
        refuse_for_all(_located(error), distributed_of(cfg))


def _located(error: ConfigError) -> ConfigError:
    """Add file and line to the problems located in the user's config files."""
    cfg, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    typed: Any = OmegaConf.to_container(cfg.overrides, resolve=False)
    return located(error, loader, cfg.job.config_name, [*typed["hydra"], *typed["task"]])


def refuse_for_all(error: ConfigError, config: DistributedConfig | None) -> NoReturn:
    """Reject a config in all processes of a run.

    If process 0 already waits for this process to connect, the config of process 0 is valid: this process connects, so
    that the error reaches all processes. Otherwise all processes have the same invalid config, and each of them exits
    without importing JAX.

    Args:
        error: the problems of the config.
        config: the group `distributed`. None: unknown, so that only this process exits.
    """
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
    """Return the config of the group `distributed`; None if it is invalid, which is reported separately."""
    try:
        node: Any = OmegaConf.to_container(cfg.distributed, resolve=True) if "distributed" in cfg else {}
        config = DistributedConfig.from_dict(DistributedConfig, node)
        config.process_info(os.environ)
    except REFUSED:
        return None
    return config
