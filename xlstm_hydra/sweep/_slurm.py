"""Launch the jobs of a sweep as a SLURM job array.

The end of the batch script requeues a job that was stopped at its time limit, unless the job has not saved a new
checkpoint since the last requeue.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra._logging import log
from xlstm_hydra.configs import SlurmLauncherConfig
from xlstm_hydra.preemption import STATUS
from xlstm_hydra.problems import ConfigError, Problem

from ._jobs import job_number
from ._outcomes import FAILED, INTERRUPTED, RUNNING, now
from ._slurm_states import ENDED, NO_PROGRESS, End, describe, end_of, is_blocked, is_held, states
from ._work import Work, failed, result_of

_SAME = ("partition", "account", "qos", "constraint", "exclude", "nodes", "gpus_per_node", "gpus_per_task", "gres")

_ASKED = (*_SAME, "cpus_per_task", "mem_gb", "timeout_min")
"""Settings that can cause SLURM to reject a job."""

_UNREACHABLE = ("Unable to contact", "Socket timed out", "Connection refused", "Unable to resolve", "Zero Bytes")
"""Parts of the `sbatch` errors that occur while the controller is down or overloaded."""

MAX_PAUSE = 30.0
"""Maximum time between two queries of the queue, in seconds."""

_TAGS = {"%j": '"$job"', "%A": '"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"', "%a": '"$SLURM_ARRAY_TASK_ID"'}
"""Shell expressions for the placeholders in the path of the submitit folder."""


class SlurmJob(NamedTuple):
    """Sweep job that was submitted to SLURM."""

    number: int
    """Job number in the sweep."""

    id: str
    """SLURM job ID, such as `12_3`."""

    overrides: Sequence[str]
    handle: Any
    """The `submitit.Job`."""


def check_slurm(config: SlurmLauncherConfig, sweep: DictConfig) -> None:
    """Check that SLURM is available, and that the processes of a job will connect to each other instead of each
    training a separate model.

    Args:
        config: the config of the launcher.
        sweep: the config of the sweep.

    Raises:
        ConfigError: SLURM is not available, or the processes would not connect to each other.
    """
    name = OmegaConf.select(sweep, "distributed.name")
    if config.tasks > 1 and name not in (None, "auto"):
        given = {"hydra.launcher.nodes": config.nodes, "hydra.launcher.tasks_per_node": config.tasks_per_node}
        rule = "processes started by srun can only connect to each other with distributed=auto"
        raise ConfigError([Problem({"distributed": name, **given}, rule, "Set {distributed}=auto.")])
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        fix = "Start the sweep on a host that can submit jobs, or choose hydra/launcher=local."
        raise ConfigError(
            [Problem.about("hydra/launcher", "SLURM is not available on this machine (sbatch or srun not found)", fix)]
        )


def launch_on_slurm(
    config: SlurmLauncherConfig, work: Work, points: Mapping[int, Sequence[str]]
) -> Sequence[JobReturn]:
    """Run one SLURM job per point, and wait for all jobs. A failed job does not stop the others.

    Args:
        config: the config of the launcher.
        work: the callable that each job runs.
        points: the overrides of each job, by job number.

    Raises:
        ConfigError: SLURM rejects the jobs.
    """
    jobs = _submit(config, work, points)
    work.update_fields({job.number: {"cluster_job": job.id} for job in jobs})
    ended = _wait(jobs)
    return [ended[job.number] or _lost(job, work) for job in jobs]


def _lost(job: SlurmJob, work: Work) -> JobReturn:
    """Log and record that a job exited without writing a result. Return a failed result."""
    end = end_of(job.id)
    text = describe(job.id, end, job.handle.task(0).paths)
    log.error("#%d: %s", job.number, text)
    work.update_fields({job.number: {"reason": text, **_outcome(end)}})
    return failed(job.overrides, RuntimeError(text))


def _outcome(end: End) -> dict[str, str]:
    """Return the fields to record for a job that exited without a result. The end that the job itself has recorded
    takes precedence, unless the job expected to be requeued."""
    if end.status == NO_PROGRESS:
        return {"status": FAILED, "ended": now()}
    return {"status": INTERRUPTED if end.state == "CANCELLED" else RUNNING}  # ended but recorded as running: lost


def _submit(config: SlurmLauncherConfig, work: Work, points: Mapping[int, Sequence[str]]) -> list[SlurmJob]:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    numbers = list(points)
    try:
        executor = submitit.SlurmExecutor(config.submitit_folder)
        executor.update_parameters(**parameters(config))
        with redirect_stderr(io.StringIO()):  # submitit also prints the error
            handles = executor.map_array(work, [list(points[number]) for number in numbers], numbers)
    except (FailedJobError, FailedSubmissionError) as error:
        raise _not_taken(error, config) from None
    except OSError as error:
        text = f"cannot be written: {error.strerror or error}"
        given = {"hydra.launcher.submitit_folder": config.submitit_folder}
        raise ConfigError([Problem(given, text, "Choose another folder.")]) from None
    jobs = [
        SlurmJob(job_number(points[number], number), handle.job_id, points[number], handle)
        for number, handle in zip(numbers, handles, strict=True)
    ]
    for job in jobs:
        log.info("#%d: SLURM job %s: %s", job.number, job.id, " ".join(job.overrides))
    log.info("logs are in %s", Path(config.submitit_folder).parent)
    return jobs


def parameters(config: SlurmLauncherConfig) -> dict[str, Any]:
    """Convert the config to parameters of `submitit.SlurmExecutor`."""
    cores = [] if config.cpus_per_task is None else [f"--cpus-per-task={config.cpus_per_task}"]  # srun does not inherit
    found = {
        **{key: config.get(key) for key in (*_SAME, "cpus_per_task")},
        "job_name": config.name,
        "time": config.timeout_min,
        "ntasks_per_node": config.tasks_per_node,
        "mem": None if config.mem_gb is None else f"{int(config.mem_gb * 1024)}M",
        "array_parallelism": config.array_parallelism,
        "setup": config.setup or None,
        "srun_args": ["--kill-on-bad-exit=1", *cores, *config.srun_args],
        "teardown": teardown(config),
        "additional_parameters": {
            **({"signal": f"TERM@{config.signal_delay_s}"} if config.signal_delay_s else {}),
            "requeue" if config.max_num_timeout else "no-requeue": True,
            **config.additional_parameters,
        },
    }
    return {key: value for key, value in found.items() if value is not None}


def _not_taken(error: Exception, config: SlurmLauncherConfig) -> ConfigError:
    """Convert an `sbatch` error to a one-line error with the requested settings."""
    said = [line.partition("error: ")[2] for line in str(error).splitlines() if "sbatch: error: " in line]
    text = ": ".join(dict.fromkeys(said)) or " ".join(str(error).split())
    if any(word in text for word in _UNREACHABLE):
        fix = "Check with squeue --me that no job was submitted, then start the sweep again."
        return ConfigError([Problem.about("hydra/launcher", f"SLURM's controller does not respond: {text}", fix)])
    asked = {key: config.get(key) for key in _ASKED if config.get(key) != getattr(SlurmLauncherConfig, key)}
    given = {f"hydra.launcher.{key}": value for key, value in asked.items()} or {"hydra/launcher": config.name}
    return ConfigError([Problem(given, f"SLURM rejected the job: {text}")])


def _wait(jobs: Sequence[SlurmJob]) -> dict[int, JobReturn | None]:
    """Wait for all jobs. Return the result of each job, by job number; None if the job ended without a result."""
    ended: dict[int, JobReturn | None] = {}
    suspects: set[str] = set()  # ended without a result when last seen: the result may be late, or the job requeued
    warned: set[str] = set()
    last_end = time.monotonic()
    while open_jobs := [job for job in jobs if job.number not in ended]:
        seen = states(job.id for job in open_jobs)
        if seen is None and "squeue" not in warned:
            warned.add("squeue")
            log.warning("squeue does not respond; waiting for it and for the results of the jobs")
        for job in open_jobs:
            result = result_of(job.handle, job.overrides)
            state, reason = ("RUNNING", "") if seen is None else seen.get(job.id, ("COMPLETED", ""))
            if result is not None or (state in ENDED and job.id in suspects):
                ended[job.number] = result
                log.info("#%d: SLURM job %s has ended", job.number, job.id)
                last_end = time.monotonic()
            _warn_once(job, state, reason, warned)
            (suspects.add if state in ENDED else suspects.discard)(job.id)
        if len(ended) < len(jobs):
            time.sleep(min(MAX_PAUSE, max(1.0, (time.monotonic() - last_end) / 20)))
    return ended


def _warn_once(job: SlurmJob, state: str, reason: str, warned: set[str]) -> None:
    """Warn, once per job, about a job that will not start without intervention."""
    if job.id in warned:
        return
    if is_held(state, reason):
        warned.add(job.id)
        text = "#%d: SLURM job %s is held (%s). scontrol release %s releases it"
        log.warning(text, job.number, job.id, reason, job.id)
    elif is_blocked(state, reason):
        warned.add(job.id)
        text = "#%d: SLURM job %s cannot start with its current settings (%s)."
        log.warning(
            f"{text} scontrol show job %s shows them; scancel %s cancels it", job.number, job.id, reason, job.id, job.id
        )


def teardown(config: SlurmLauncherConfig) -> list[str]:
    """Return the lines of the batch script that follow the run."""
    # In the last task of an array, SLURM_JOB_ID is the ID of the whole array.
    is_alive = '[ "$(squeue -h -j "$job" -o %T)" = RUNNING ]'
    was_stopped = f'{{ [ "$status" = {STATUS} ] || [ "$status" = {128 + 15} ]; }}'
    return [
        "status=$?",
        'job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"',
        'job="${job:-$SLURM_JOB_ID}"',
        f"files={_in_shell(config.submitit_folder)}",
        f'if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {config.max_num_timeout} ] && {was_stopped} && {is_alive}; then',
        '  run="$(cat "$files/${job}_run" 2>/dev/null)"',
        '  step="$([ -n "$run" ] && ls "$run/checkpoints" 2>/dev/null | grep -x "[0-9]*" | sort -n | tail -n 1)"',
        '  before="$(cat "$files/${job}_requeued_at" 2>/dev/null)"',
        f'  if [ "$SECONDS" -ge {config.signal_at_s} ] && [ "${{step:-0}}" = "$before" ]; then',
        '    echo "xlstm-hydra: not requeued: no new checkpoint since the last requeue, at step $before" >&2',
        f"    status={NO_PROGRESS}",
        "  else",
        '    echo "${step:-0}" >"$files/${job}_requeued_at"',
        '    scontrol requeue "$job" && sleep 60',
        "  fi",
        "fi",
        'exit "$status"',
    ]


def _in_shell(folder: str) -> str:
    """Return the path of the submitit folder as a shell expression."""
    parts = re.split("(%[jAa])", os.path.abspath(os.path.expanduser(folder)))
    return "".join(_TAGS[part] if part in _TAGS else shlex.quote(part) for part in parts if part)
