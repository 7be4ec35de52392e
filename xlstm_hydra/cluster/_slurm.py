"""Jobs of a sweep as an array of SLURM jobs."""

from __future__ import annotations

import io
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import ConfigError, Problem, SlurmLauncherConfig
from xlstm_hydra.preemption import STATUS
from xlstm_hydra.sweep import RUNNING, job_number

from ._job import Work
from ._return import failed, result_of
from ._states import ENDED, HELD, end_of, states

log = logging.getLogger(__name__)

_SAME = ("partition", "account", "qos", "constraint", "exclude", "nodes", "gpus_per_node", "gpus_per_task", "gres")
_ASKED = (*_SAME, "cpus_per_task", "mem_gb", "timeout_min")
"""What SLURM may not have, or not give."""

LONGEST_PAUSE = 30.0
"""Seconds between two looks at the queue, at most."""


class Job(NamedTuple):
    """A job of the sweep, as SLURM has it."""

    number: int
    """That of its folder."""

    id: str
    """That of SLURM, such as `12_3`."""

    overrides: Sequence[str]
    handle: Any
    """submitit's."""


def check_slurm(config: SlurmLauncherConfig, sweep: DictConfig) -> None:
    """Make sure that there is a SLURM here, and that the processes of a job find each other, instead of training the
    whole each.

    Args:
        config: what each job gets.
        sweep: the config of the sweep.

    Raises:
        ConfigError: with what to do.
    """
    name = OmegaConf.select(sweep, "distributed.name")
    if config.tasks > 1 and name not in (None, "auto"):
        given = {"hydra.launcher.nodes": config.nodes, "hydra.launcher.tasks_per_node": config.tasks_per_node}
        rule = "the processes that srun starts meet by distributed=auto alone"
        raise ConfigError([Problem({"distributed": name, **given}, rule, "Set {distributed}=auto.")])
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        fix = "Start the sweep on a host from which jobs are submitted, or choose hydra/launcher=local."
        raise ConfigError([Problem.about("hydra/launcher", "there is no SLURM here (no sbatch and srun)", fix)])


def launch_on_slurm(
    config: SlurmLauncherConfig, work: Work, points: Mapping[int, Sequence[str]]
) -> Sequence[JobReturn]:
    """Run a job for each point, and wait for all of them. None of them ends the others.

    Args:
        config: what each job gets.
        work: what it does.
        points: the overrides of each, by the number of the job.

    Raises:
        ConfigError: SLURM takes no such job.
    """
    jobs = _submit(config, work, points)
    work.amend({job.number: {"cluster_job": job.id} for job in jobs})
    ended = _wait(jobs)
    return [ended[job.number] or _lost(job, work) for job in jobs]


def _lost(job: Job, work: Work) -> JobReturn:
    """The return of a job that has left no word."""
    text = f"SLURM job {job.id} ended as {end_of(job.id)}; what it said is in {job.handle.task(0).paths.stderr}"
    log.error("#%d: %s", job.number, text)
    work.amend({job.number: {"status": RUNNING, "reason": text}})  # unless it says itself how it ended, it is lost
    return failed(job.overrides, RuntimeError(text))


def _submit(config: SlurmLauncherConfig, work: Work, points: Mapping[int, Sequence[str]]) -> list[Job]:
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.SlurmExecutor(config.submitit_folder)
    executor.update_parameters(**parameters(config))
    numbers = list(points)
    try:
        with redirect_stderr(io.StringIO()):  # which submitit fills with what the error has too
            handles = executor.map_array(work, [list(points[number]) for number in numbers], numbers)
    except FailedJobError as error:
        raise _not_taken(error, config) from None
    jobs = [
        Job(job_number(points[number], number), handle.job_id, points[number], handle)
        for number, handle in zip(numbers, handles, strict=True)
    ]
    for job in jobs:
        log.info("#%d: SLURM job %s: %s", job.number, job.id, " ".join(job.overrides))
    log.info("What they say is in %s", Path(config.submitit_folder).parent)
    return jobs


def parameters(config: SlurmLauncherConfig) -> dict[str, Any]:
    """The config in the words of submitit's SLURM executor."""
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
        "teardown": _teardown(config.max_num_timeout),
        "additional_parameters": {
            "signal": f"TERM@{config.signal_delay_s}",
            "requeue" if config.max_num_timeout else "no-requeue": True,
            **config.additional_parameters,
        },
    }
    return {key: value for key, value in found.items() if value is not None}


def _teardown(times: int) -> list[str]:
    """The end of the batch script: a job that was told to leave, and that nobody has cancelled, is put back."""
    # SLURM_JOB_ID of an array's last element is that of the whole array.
    alive = '[ "$(squeue -h -j "$job" -o %T)" = RUNNING ]'
    told = f'[ "$status" = {STATUS} ] || [ "$status" = {128 + 15} ]'
    return [
        "status=$?",
        'job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"',
        'job="${job:-$SLURM_JOB_ID}"',
        f'if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {times} ] && {{ {told}; }} && {alive}; then',
        '  scontrol requeue "$job"',
        "  sleep 60",
        "fi",
        'exit "$status"',
    ]


def _not_taken(error: Exception, config: SlurmLauncherConfig) -> ConfigError:
    """The words of `sbatch`, in one line, and what was asked for."""
    said = [line.partition("error: ")[2] for line in str(error).splitlines() if "sbatch: error: " in line]
    text = ": ".join(dict.fromkeys(said)) or str(error).strip().splitlines()[-1]
    asked = {key: config.get(key) for key in _ASKED if config.get(key) != getattr(SlurmLauncherConfig, key)}
    given = {f"hydra.launcher.{key}": value for key, value in asked.items()} or {"hydra/launcher": config.name}
    return ConfigError([Problem(given, f"SLURM takes no such job: {text}")])


def _wait(jobs: Sequence[Job]) -> dict[int, JobReturn | None]:
    """What each job returned; None for one that SLURM has ended."""
    ended: dict[int, JobReturn | None] = {}
    suspects: set[str] = set()  # ended without a result, when last seen: it may be on its way, or the job is put back
    told: set[str] = set()
    last_end = time.monotonic()
    while open_jobs := [job for job in jobs if job.number not in ended]:
        seen = states(job.id for job in open_jobs)
        if seen is None and "squeue" not in told:
            told.add("squeue")
            log.warning("SLURM's queue does not answer; waiting for it, and for the results of the jobs")
        for job in open_jobs:
            result = result_of(job.handle, job.overrides)
            state, reason = ("RUNNING", "") if seen is None else seen.get(job.id, ("COMPLETED", ""))
            if result is not None or (state in ENDED and job.id in suspects):
                ended[job.number] = result
                log.info("#%d: SLURM job %s has ended", job.number, job.id)
                last_end = time.monotonic()
            if state in HELD and job.id not in told:
                told.add(job.id)
                log.warning("#%d: SLURM holds job %s (%s): scontrol release %s", job.number, job.id, reason, job.id)
            (suspects.add if state in ENDED else suspects.discard)(job.id)
        if len(ended) < len(jobs):
            time.sleep(min(LONGEST_PAUSE, max(1.0, (time.monotonic() - last_end) / 20)))
    return ended
