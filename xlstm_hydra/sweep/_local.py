"""Jobs of a sweep as processes on this machine."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from xlstm_hydra.configs import LocalLauncherConfig
from xlstm_hydra.problems import ConfigError, Problem

from ._labels import job_number
from ._outcomes import RUNNING
from ._slurm_states import describe_logs
from ._work import Work, failed, result_of

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5

_DEVICES = ("/proc/driver/nvidia", "/dev/kfd", "/dev/dxg")
"""What is there where GPUs are: NVIDIA's, AMD's, and those that Windows shows a Linux inside it."""

A_YEAR = 60 * 24 * 365
"""In minutes: submitit wants a limit."""


def check_gpus(config: LocalLauncherConfig) -> None:
    """Make sure that there are the GPUs that jobs are to have. The one of each by default need not be there.

    Raises:
        ConfigError: there are fewer.
    """
    _gpus_of_slots(config)
    if config.gpus_per_job > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ and not _has_gpus():
        fix = "Leave it out, or sweep on another machine, such as with hydra/launcher=slurm."
        raise ConfigError(
            [Problem({"hydra.launcher.gpus_per_job": config.gpus_per_job}, "there are no GPUs here", fix)]
        )


def launch_locally(config: LocalLauncherConfig, work: Work, points: Mapping[int, Sequence[str]]) -> Sequence[JobReturn]:
    """Run a process for each point, some at a time, and wait for all of them. None of them ends the others. Whatever
    ends this one, as Ctrl-C or SIGTERM, has those that run save and leave.

    Args:
        config: what each of them gets.
        work: what it does.
        points: the overrides of each, by the number of the job.
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
    """Have jobs save and leave, and wait until they have. Interrupted once more, they leave at once."""
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
    """Processes that are started inside do not get Ctrl-C from the terminal: they are stopped in another way."""
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
    """The numbers of the GPUs for each of the jobs that run at a time.

    Raises:
        ConfigError: there are fewer.
    """
    count, seen = config.gpus_per_job, os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = config.jobs_at_once * count
    here = _nvidia_gpus()
    gpus = list(range(here or wanted)) if seen is None else [int(text) for text in seen.split(",") if text.isdigit()]
    if wanted > len(gpus):
        given = {"hydra.launcher.jobs_at_once": config.jobs_at_once, "hydra.launcher.gpus_per_job": count}
        visible = f"{len(gpus)} can be used here" + ("" if seen is None else f" (CUDA_VISIBLE_DEVICES={seen})")
        raise ConfigError([Problem(given, f"{wanted} GPUs are needed, and {visible}", "Set one of them lower.")])
    return [gpus[slot * count : (slot + 1) * count] for slot in range(config.jobs_at_once)]


def _nvidia_gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _has_gpus() -> bool:
    """Whether there may be GPUs, of any kind."""
    return bool(_nvidia_gpus()) or any(Path(name).exists() for name in _DEVICES)


def _lost(number: int, handle: Any, work: Work, points: Mapping[int, Sequence[str]]) -> JobReturn:
    paths = handle.task(0).paths
    text = f"the process of the job exited without a result (was it killed?). {describe_logs(paths)}"
    log.error("#%d: %s", number, text)
    work.update_fields({job_number(points[number], number): {"status": RUNNING, "reason": text}})
    return failed(points[number], RuntimeError(text))
