"""Run a job in its own process, read the result, and launch jobs as processes on this machine."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from xlstm_hydra._logging import log
from xlstm_hydra.configs import LocalLauncherConfig
from xlstm_hydra.hydra import overrides_of_other
from xlstm_hydra.problems import ConfigError, Problem

from ._jobs import job_number
from ._outcomes import RECORD_FILE, RUNNING, update_fields
from ._slurm_states import describe_logs

_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass
class Work:
    """Callable that runs the task of a sweep in a job. The sweeping process pickles it for its jobs."""

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    """The config of the sweep."""

    singletons: Any
    """State of Hydra's singletons in the sweeping process."""

    def __call__(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Run one job. If the job fails, the process exits with an error status, so that SLURM also reports a
        failure."""
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
            atexit.register(_exit, status)  # after the result is written
        return done

    def task_noting_its_folder(self, config: DictConfig) -> Any:
        """Write the path of the run folder to a file for the batch script, then run the task."""
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and _process() == 0:
            note_run_folder(Path(HydraConfig.get().runtime.output_dir))
        return self.task(config)

    def config_of(self, overrides: Sequence[str]) -> DictConfig:
        """Compose the config of a job for this process. Processes other than the first write no log file."""
        if process := _process():
            quiet = overrides_of_other(process, self.config.hydra.runtime.choices["hydra/job_logging"])
            overrides = [*overrides, *quiet]
        return self.context.config_loader.load_sweep_config(self.config, list(overrides))

    def update_fields(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Change fields of jobs in the record of the sweep, if there is a record."""
        folder = Path(self.config.hydra.sweep.dir)
        if (folder / RECORD_FILE).exists():
            update_fields(folder, changes)


def _take_signals_back() -> None:
    """Restore the default handlers of the signals that submitit handles."""
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def _end_with_parent() -> None:
    """On Linux, make this process save and exit when its parent process, which monitors it, is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _process() -> int:
    """Return the number of this process among the processes of the job."""
    return int(os.environ.get("SLURM_PROCID", "0"))


def _job_id() -> str:
    import submitit

    return submitit.JobEnvironment().job_id


def _portable(error: Any) -> BaseException:
    """Return the error in a form that the sweeping process can unpickle, with the traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    error.add_note(f"On {os.uname().nodename}, in job {_job_id()}:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(trace)
    return error


def _exit(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def result_of(handle: Any, overrides: Sequence[str]) -> JobReturn | None:
    """Return the result of the first process of a job; None if there is no result yet.

    Args:
        handle: the submitit job.
        overrides: the overrides of the job's point.
    """
    from submitit.core.utils import pickle_load

    path = handle.task(0).paths.result_pickle
    if not path.exists():
        return None
    try:
        outcome, result = pickle_load(path)
    except (OSError, EOFError, ImportError, AttributeError, pickle.UnpicklingError) as error:
        return failed(overrides, RuntimeError(f"the result of the job cannot be read: {path}: {error}"))
    return result if outcome == "success" else failed(overrides, RuntimeError(_last_line_first(result)))


def _last_line_first(trace: str) -> str:
    """Put the last line of a traceback first, because the first line is shown as the reason."""
    return f"{trace.strip().splitlines()[-1]}\n{trace}" if trace.strip() else trace


def failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    """Return a failed result for a job that did not return a result."""
    return JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=error)


def note_run_folder(run: Path) -> None:
    """Write the path of a run folder to a file, from which the batch script reads where to look for new checkpoints.
    Log a warning if the file cannot be written."""
    import submitit

    environment = submitit.JobEnvironment()
    file = environment.paths.folder / f"{environment.job_id}_run"
    try:
        file.write_text(f"{run.absolute()}\n", encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written, so the batch script will not find new checkpoints: %s", file, error.strerror)


# ---- processes on this machine

POLL_SECONDS = 0.5

_DEVICES = ("/proc/driver/nvidia", "/dev/kfd", "/dev/dxg")
"""Files that exist on machines with NVIDIA or AMD GPUs, or in Windows Subsystem for Linux."""

A_YEAR = 60 * 24 * 365
"""Time limit of local jobs in minutes, because submitit requires a limit."""


def check_gpus(config: LocalLauncherConfig) -> None:
    """Check that the requested GPUs exist. On a machine without GPUs, the default of one GPU per job is accepted.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    _gpus_of_slots(config)
    if config.gpus_per_job > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ and not _has_gpus():
        fix = "Remove this setting, or run the sweep on other machines, for example with hydra/launcher=slurm."
        raise ConfigError(
            [Problem({"hydra.launcher.gpus_per_job": config.gpus_per_job}, "this machine has no GPUs", fix)]
        )


def launch_locally(config: LocalLauncherConfig, work: Work, points: Mapping[int, Sequence[str]]) -> Sequence[JobReturn]:
    """Run one process per point, several at a time, and wait for all processes. A failed process does not stop the
    others. If this process is stopped, for example by Ctrl-C or SIGTERM, the running processes save and exit.

    Args:
        config: the config of the launcher.
        work: the callable that each job runs.
        points: the overrides of each job, by job number.
    """
    waiting, running, ended = list(points), dict[int, tuple[int, Any]](), dict[int, JobReturn]()
    gpus = _gpus_of_slots(config)
    free = list(range(config.jobs_at_once))
    try:
        while waiting or running:
            while waiting and free:
                slot, number = free.pop(0), waiting.pop(0)
                running[slot] = number, _start(config, work, points[number], number, gpus[slot])
            for slot, (number, handle) in list(running.items()):
                if handle.done():
                    ended[number] = result_of(handle, points[number]) or _lost(number, handle, work, points)
                    del running[slot]
                    free.append(slot)
            time.sleep(POLL_SECONDS)
    except BaseException:
        _end_all([handle for _, handle in running.values()])
        raise
    return [ended[number] for number in points]


def _end_all(handles: Sequence[Any]) -> None:
    """Make jobs save and exit, and wait for them. A second interrupt stops the jobs immediately."""
    _terminate(handles)
    try:
        while not all(handle.done() for handle in handles):
            time.sleep(POLL_SECONDS)
    except BaseException:
        _terminate(handles)
        raise


def _terminate(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle._process.terminate()


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Ignore Ctrl-C in processes started inside the `with` block. This process stops them with SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(config: LocalLauncherConfig, work: Work, overrides: Sequence[str], number: int, gpus: list[int]) -> Any:
    import submitit

    log.info("#%d: %s", number, " ".join(overrides))
    executor = submitit.LocalExecutor(config.submitit_folder)
    executor.update_parameters(
        timeout_min=A_YEAR, setup=config.setup, gpus_per_node=len(gpus), visible_gpus=gpus, tasks_per_node=1
    )
    with _ctrl_c_ignored():
        return executor.submit(work, list(overrides), number)


def _gpus_of_slots(config: LocalLauncherConfig) -> list[list[int]]:
    """Return the GPU numbers for each of the jobs that run at the same time.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    count, seen = config.gpus_per_job, os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = config.jobs_at_once * count
    here = _nvidia_gpus()
    gpus = list(range(here or wanted)) if seen is None else [int(text) for text in seen.split(",") if text.isdigit()]
    if wanted > len(gpus):
        given = {"hydra.launcher.jobs_at_once": config.jobs_at_once, "hydra.launcher.gpus_per_job": count}
        visible = f"{len(gpus)} are available here" + ("" if seen is None else f" (CUDA_VISIBLE_DEVICES={seen})")
        raise ConfigError([Problem(given, f"{wanted} GPUs are required, but {visible}", "Lower one of these values.")])
    return [gpus[slot * count : (slot + 1) * count] for slot in range(config.jobs_at_once)]


def _nvidia_gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _has_gpus() -> bool:
    """True if there may be GPUs of any vendor."""
    return bool(_nvidia_gpus()) or any(Path(name).exists() for name in _DEVICES)


def _lost(number: int, handle: Any, work: Work, points: Mapping[int, Sequence[str]]) -> JobReturn:
    paths = handle.task(0).paths
    text = f"the process of the job exited without a result (was it killed?). {describe_logs(paths)}"
    log.error("#%d: %s", number, text)
    work.update_fields({job_number(points[number], number): {"status": RUNNING, "reason": text}})
    return failed(points[number], RuntimeError(text))
