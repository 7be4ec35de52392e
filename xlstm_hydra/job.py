"""What the command does with one composed config: check it, then do its task in the folder that Hydra gives it."""

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
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import ConfigError, DistributedConfig, RunConfig
from xlstm_hydra.hydra import REFUSED, load, located, resolve_classes
from xlstm_hydra.preemption import refuse_to_begin, watched

RUN_NOTE = "The run's folder is "
"""How the note begins that marks an error as one of a run that had started."""

TASKS = {
    "train": "xlstm_hydra.train",
    "evaluate": "xlstm_hydra.inference",
    "generate": "xlstm_hydra.inference",
    "plan": "xlstm_hydra.plan_cli",
}
"""The module in which the function of a task is, under the task's name."""


def run_task(cfg: DictConfig) -> float | None:
    """Check the config, then do its task. Returns the loss that it ends with, if any, or the time of a step that is
    planned, for sweepers that minimise it."""
    from xlstm_hydra.sweep import DOES_NOT_FIT, going_on, recorded  # 15 ms, not for `--cfg job`

    config = distributed_of(cfg)
    place = config.place(os.environ) if config else None
    refuse_to_begin()
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
        refuse_for_all(_located(error), config)


def _located(error: ConfigError) -> ConfigError:
    """The same, with the file and the line of what is wrong in a file of the user's."""
    cfg, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    typed: Any = OmegaConf.to_container(cfg.overrides, resolve=False)
    return located(error, loader, cfg.job.config_name, [*typed["hydra"], *typed["task"]])


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
        if not _is_to_be_done(run, folder):
            yield folder
            return
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


def _is_to_be_done(run: RunConfig, folder: Path) -> bool:
    """Whether the run has something left to do. What is in the folder, and the config that stands there, are not lost
    to a run that will be refused."""
    from xlstm_hydra.metadata import find_start, refuse_to_overwrite, step_of

    start = find_start(run, folder)
    if not start.is_own:
        refuse_to_overwrite(folder, 0 if start.checkpoint is None else step_of(start.checkpoint))
    if start.checkpoint is None:
        return True
    if start.is_done(run.trainer.max_steps):
        return False
    from xlstm_hydra.train import read_resumed

    read_resumed(dataclasses.replace(run, model=resolve_classes(run.model)), start.checkpoint)
    return True


def refuse_for_all(error: ConfigError, config: DistributedConfig | None) -> NoReturn:
    """Refuse a config. Where process 0 is waiting for this one already, its config is good, and it is told; where all
    have the same bad config, nobody waits, and each ends on its own without JAX."""
    place = config.place(os.environ) if config else None
    if config is not None and place is not None and place.process_id > 0 and _is_open(place.coordinator_address):
        from xlstm_hydra.train import together

        with together(config):
            raise error
    refuse(error, place.process_id if place else 0)


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def refuse(error: ConfigError, process: int = 0) -> NoReturn:
    print(f"xlstm-hydra: {f'process {process}: ' if process else ''}{error}", file=sys.stderr)
    sys.exit(2)


def distributed_of(cfg: DictConfig) -> DistributedConfig | None:
    """That part of a config; None where it makes no sense, which is a problem of its own."""
    try:
        node: Any = OmegaConf.to_container(cfg.distributed, resolve=True) if "distributed" in cfg else {}
        config = DistributedConfig.from_dict(DistributedConfig, node)
        config.place(os.environ)
    except REFUSED:
        return None
    return config
