"""What a job has left for the process that sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from ._job import Work


def result_of(handle: Any, work: Work, overrides: Sequence[str]) -> JobReturn | None:
    """What the first process of a job returned, if it has yet.

    Args:
        handle: submitit's job.
        work: what it does.
        overrides: those of its point.
    """
    import submitit

    path = handle.task(0).paths.result_pickle
    if not path.exists():
        return None
    outcome, result = submitit.core.utils.pickle_load(path)
    return result if outcome == "success" else failed(work, overrides, RuntimeError(result))


def failed(work: Work, overrides: Sequence[str], error: Exception) -> JobReturn:
    """The return of a job that has left none."""
    config = work.config_of(overrides)
    return JobReturn(
        overrides=list(overrides),
        cfg=config,
        hydra_cfg=config,
        working_dir=str(config.hydra.sweep.dir),
        task_name=config.hydra.job.name,
        status=JobStatus.FAILED,
        _return_value=error,
    )
