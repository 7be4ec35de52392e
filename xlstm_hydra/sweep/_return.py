"""What a job has left for the process that sweeps."""

from __future__ import annotations

import pickle
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
    try:
        outcome, result = pickle_load(path)
    except (OSError, EOFError, ImportError, AttributeError, pickle.UnpicklingError) as error:
        return failed(overrides, RuntimeError(f"the result of the job cannot be read: {path}: {error}"))
    return result if outcome == "success" else failed(overrides, RuntimeError(_last_line_first(result)))


def _last_line_first(trace: str) -> str:
    """A traceback below its last line, which is shown as the reason."""
    return f"{trace.strip().splitlines()[-1]}\n{trace}" if trace.strip() else trace


def failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    """The return of a job that has left none."""
    return JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=error)
