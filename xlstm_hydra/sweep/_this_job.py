"""The job of a sweep that this process runs, as Hydra tells of it."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import AUTO, RunConfig
from xlstm_hydra.runs import saved_steps

from ._jobs import Unrecorded, job_recorded
from ._point_labels import job_number


def recorded(cfg: DictConfig, process: int) -> AbstractContextManager[Unrecorded]:
    """Put how the job ends into the record of its sweep, if it is one of a sweep. Of several processes, the first does.

    Args:
        cfg: the config of the run, which may be wrong.
        process: the number of this process.
    """
    config: Any = HydraConfig.get()
    if config.mode != RunMode.MULTIRUN or process > 0:
        return nullcontext(Unrecorded())
    sweep = Path(config.runtime.cwd) / config.sweep.dir
    number = job_number(config.overrides.hydra, config.job.num)
    folder, task = Path(config.runtime.output_dir), OmegaConf.select(cfg, "task.name")
    return job_recorded(sweep, folder, number, config.overrides.task, task)


def going_on(run: RunConfig) -> RunConfig:
    """A job of a sweep that goes on does so too, from what it has saved."""
    config = cast(DictConfig, HydraConfig.get())
    if config.mode != RunMode.MULTIRUN or not OmegaConf.select(config, "sweeper.resume"):
        return run
    if run.task.name != "train" or not saved_steps(Path(config.runtime.output_dir)):
        return run
    return dataclasses.replace(run, checkpoint=dataclasses.replace(run.checkpoint, restore=AUTO))
