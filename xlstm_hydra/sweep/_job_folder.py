"""The folder of a job, tried before any job starts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from xlstm_hydra.errors import first_line
from xlstm_hydra.hydra import SweepLoader
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import RunFolder

from ._point_labels import SUBDIR
from ._sweep_folder import make_sweep_folder

_FIX = "Leave it out, or choose a name that contains the number of the job, hydra.job.num."


def check_job_folder(config: DictConfig, loader: SweepLoader, overrides: Sequence[str], job: int) -> None:
    """Make sure that the folder of a job can be made. Nothing is left there.

    Args:
        config: of the sweep.
        loader: what composes its jobs.
        overrides: of the job.
        job: its number.

    Raises:
        ConfigError: the name has no value, or the folder cannot be made.
    """
    cfg = loader.load_sweep_config(config, list(overrides))
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.job.num, cfg.hydra.job.id = job, str(job)
    raw: Any = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    given = {SUBDIR: raw["subdir"]}
    is_here = cfg.hydra.launcher._target_.endswith(".BasicLauncher")
    if "oc.env" in str(raw["subdir"]) and not is_here:
        return  # a variable that only the process of the job may have
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        path = Path(str(cfg.hydra.sweep.dir), str(cfg.hydra.sweep.subdir)).absolute()
    except OmegaConfBaseException as error:
        raise ConfigError([Problem.about(f"{SUBDIR}={raw['subdir']}", first_line(error), _FIX)]) from None
    finally:
        HydraConfig.instance().cfg = before
    folder = RunFolder(path, given, _FIX)
    with ExitStack() as undo:
        with make_sweep_folder(Path(cfg.hydra.sweep.dir).absolute()) as made:  # with a message of its own
            undo.push(made.pop_all())
        with folder.writing():
            folder.make(path, undo)
