"""How the jobs of a sweep went: one record of all of them, kept while they run and told at the end."""

from ._driver import DOES_NOT_FIT as DOES_NOT_FIT
from ._driver import begin as begin
from ._driver import finish as finish
from ._job import ERROR_FILE as ERROR_FILE
from ._job import JobRecord as JobRecord
from ._job import Unrecorded as Unrecorded
from ._job import job_recorded as job_recorded
from ._outcome import FAILED as FAILED
from ._outcome import INTERRUPTED as INTERRUPTED
from ._outcome import RECORD_FILE as RECORD_FILE
from ._outcome import RUNNING as RUNNING
from ._outcome import Outcome as Outcome
from ._outcome import amend_record as amend_record
from ._outcome import now as now
from ._outcome import read_record as read_record
from ._outcome import update_record as update_record
from ._plan_points import is_planned as is_planned
from ._plan_points import plan_points as plan_points
from ._points import job_number as job_number
from ._resume import expand_resume_sweep as expand_resume_sweep
from ._sweep import run_sweep as run_sweep
from ._this_job import going_on as going_on
from ._this_job import recorded as recorded
