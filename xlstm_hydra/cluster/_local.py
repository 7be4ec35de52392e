"""Jobs of a sweep as processes on this machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from xlstm_hydra.configs import LocalLauncherConfig
from xlstm_hydra.sweep import RUNNING

from ._job import Work
from ._return import failed, result_of

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
A_YEAR = 60 * 24 * 365
"""In minutes: submitit wants a limit."""


def launch_locally(config: LocalLauncherConfig, work: Work, points: Mapping[int, Sequence[str]]) -> Sequence[JobReturn]:
    """Run a process for each point, some at a time, and wait for all of them. None of them ends the others.

    Args:
        config: what each of them gets.
        work: what it does.
        points: the overrides of each, by the number of the job.

    Interrupted, it ends those that run.
    """
    waiting, running, ended = list(points), dict[int, tuple[int, Any]](), dict[int, JobReturn]()
    free = list(range(config.jobs_at_once))
    try:
        while waiting or running:
            while waiting and free:
                slot, number = free.pop(0), waiting.pop(0)
                running[slot] = number, _start(config, work, points[number], number, slot)
            for slot, (number, handle) in list(running.items()):
                if handle.done():
                    ended[number] = result_of(handle, points[number]) or _lost(number, handle, work, points)
                    del running[slot]
                    free.append(slot)
            time.sleep(POLL_SECONDS)
    except BaseException as error:
        _end_all([handle for _, handle in running.values()], error)
        raise
    return [ended[number] for number in points]


def _end_all(handles: Sequence[Any], error: BaseException) -> None:
    """Have them save and leave, or leave at once after Ctrl-C, and wait until they have."""
    for handle in handles:
        if isinstance(error, KeyboardInterrupt):
            handle.cancel()
        else:
            handle._process.terminate()
    while not all(handle.done() for handle in handles):
        time.sleep(POLL_SECONDS)


def _start(config: LocalLauncherConfig, work: Work, overrides: Sequence[str], number: int, slot: int) -> Any:
    import submitit

    log.info("#%d: %s", number, " ".join(overrides))
    gpus = _gpus(slot, config.gpus_per_job)
    executor = submitit.LocalExecutor(config.submitit_folder)
    executor.update_parameters(
        timeout_min=A_YEAR, setup=config.setup, gpus_per_node=len(gpus), visible_gpus=gpus, tasks_per_node=1
    )
    return executor.submit(work, list(overrides), number)


def _gpus(slot: int, count: int) -> list[int]:
    """Those of one of the jobs that run at a time, by their numbers on this machine."""
    first, visible = slot * count, os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(range(first, first + count))
    given = [int(text) for text in visible.split(",") if text.strip().isdigit()]
    return given[first : first + count]


def _lost(number: int, handle: Any, work: Work, points: Mapping[int, Sequence[str]]) -> JobReturn:
    said = Path(handle.paths.stderr)
    text = f"the process of the job ended without a word, as one does that is killed; what it said before is in {said}"
    log.error("#%d: %s", number, text)
    work.amend({work.folder_number(points[number], number): {"status": RUNNING, "reason": text}})
    return failed(points[number], RuntimeError(text))
