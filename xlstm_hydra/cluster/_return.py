"""What a job has left for the process that sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus


def result_of(handle: Any, overrides: Sequence[str]) -> JobReturn | None:
    """What the first process of a job returned, if it has yet.

    Args:
        handle: submitit's job.
        overrides: those of its point.
    """
    from submitit.core.utils import pickle_load

    path = handle.task(0).paths.result_pickle
    if not path.exists():
        return None
    outcome, result = pickle_load(path)
    return result if outcome == "success" else failed(overrides, RuntimeError(result))


def failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    """The return of a job that has left none."""
    return JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=error)
