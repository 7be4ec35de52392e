"""How the jobs of a sweep went: one record of all of them, kept while they run and told at the end."""

from ._driver import begin, finish
from ._job import ERROR_FILE, JobRecord, Unrecorded, job_recorded
from ._outcome import RECORD_FILE, RUNNING, Outcome, amend_record, read_record, update_record
from ._plan_points import is_planned, plan_points
from ._resume import expand_resume_sweep
from ._sweep import run_sweep
from ._this_job import going_on, recorded

__all__ = [
    "ERROR_FILE",
    "RECORD_FILE",
    "RUNNING",
    "JobRecord",
    "Outcome",
    "Unrecorded",
    "amend_record",
    "begin",
    "expand_resume_sweep",
    "finish",
    "going_on",
    "is_planned",
    "job_recorded",
    "plan_points",
    "read_record",
    "recorded",
    "run_sweep",
    "update_record",
]
