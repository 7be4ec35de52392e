"""What a process of a job does, wherever it runs."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from xlstm_hydra.hydra import overrides_of_other
from xlstm_hydra.problems import ConfigError

from ._outcomes import RECORD_FILE, amend_record
from ._requeue import note_run_folder

_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass
class Work:
    """The task of a sweep, as the sweeping process pickles it for its jobs."""

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    """That of the sweep."""

    singletons: Any
    """What Hydra knows in the sweeping process."""

    def __call__(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Do one job. Its process ends as the job did, so that the cluster sees it too."""
        _take_signals_back()
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            _end_with_parent()
        Singleton.set_state(self.singletons)
        setup_globals()
        config = self.config_of(overrides)
        with open_dict(config.hydra.job):
            config.hydra.job.id = _job_id()
            config.hydra.job.num = number
        done = run_job(
            task_function=self.task_noting_its_folder,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.context,
        )
        if done.status == JobStatus.FAILED:
            done.return_value = _portable(done._return_value)
            status = 2 if isinstance(done._return_value, ConfigError) else 1
            atexit.register(_leave, status)  # when the result is written
        return done

    def task_noting_its_folder(self, config: DictConfig) -> Any:
        """Do the task, once the batch script of the job knows where its checkpoints are."""
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and _process() == 0:
            note_run_folder(Path(HydraConfig.get().runtime.output_dir))
        return self.task(config)

    def config_of(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a job, for this process of it."""
        if process := _process():
            quiet = overrides_of_other(process, self.config.hydra.runtime.choices["hydra/job_logging"])
            overrides = [*overrides, *quiet]
        return self.context.config_loader.load_sweep_config(self.config, list(overrides))

    def amend(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Note in the record of the sweep, if it has one, what is known of its jobs."""
        folder = Path(self.config.hydra.sweep.dir)
        if (folder / RECORD_FILE).exists():
            amend_record(folder, changes)


def _take_signals_back() -> None:
    """Signals mean to a run what they always do; submitit has answers of its own, of which a run knows nothing."""
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def _end_with_parent() -> None:
    """Have this process save and leave when the one that watches it is killed, on Linux: nobody would know of it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _process() -> int:
    """The number of this process among those of the job."""
    return int(os.environ.get("SLURM_PROCID", "0"))


def _job_id() -> str:
    import submitit

    return submitit.JobEnvironment().job_id


def _portable(error: Any) -> BaseException:
    """An error that the sweeping process can read, with what was to be seen here."""
    trace = "".join(traceback.format_exception(error))
    error.add_note(f"On {os.uname().nodename}, in job {_job_id()}:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(trace)
    return error


def _leave(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
