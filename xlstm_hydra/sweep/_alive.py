"""What still runs, of the jobs of a sweep."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from xlstm_hydra.runs import is_held

from ._jobs import measured
from ._outcomes import COMPLETED, INTERRUPTED, INVALID, LOST, RUNNING, WAITING, Outcome, log, read_outcome

SQUEUE_SECONDS = 20
"""How long SLURM may take to list its jobs."""

ENDING = "CG"
"""State of a job that SLURM is clearing away."""

LOST_REASON = "it ended without a result (killed, out of memory, or its node failed?)"


def job_folder(sweep: Path, outcome: Outcome) -> Path:
    """The folder of a job; where the sweep does not know it, the one that it has unless told otherwise."""
    return sweep / (outcome.folder or str(outcome.job))


def alive(sweep: Path, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The jobs that still run, or wait in the queue of a cluster."""
    outcomes = [outcome for outcome in outcomes if outcome.status not in (COMPLETED, INVALID)]
    submitted = {one.job: one for one in outcomes if one.cluster_job}
    queued = _queued(submitted) if submitted else set()
    return [one for one in outcomes if one.job in queued or is_held(job_folder(sweep, one))]


def mended(sweep: Path, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes with what the jobs have left in their own folders, where that is more; a job that is neither there
    nor has ended is lost."""
    found = {one.job: one for file in sweep.glob("*/outcome.json") if (one := _own(file.parent, sweep)) is not None}
    taken = [_newer(one, found.get(one.job) or _own(job_folder(sweep, one), sweep)) for one in outcomes]
    taken += [found[job] for job in sorted(found.keys() - {one.job for one in taken})]
    running = {one.job for one in alive(sweep, [one for one in taken if one.status == RUNNING])}
    stopped = {one.job for one in taken if one.status == INTERRUPTED or one.status == RUNNING} - running
    return [_stopped(sweep, one) if one.job in stopped else one for one in taken]


def _own(folder: Path, sweep: Path) -> Outcome | None:
    """What a job has left in its folder, which is where it was found, whatever the job says."""
    own = read_outcome(folder)
    return None if own is None else replace(own, folder=os.path.relpath(folder, sweep))


def _newer(known: Outcome, own: Outcome | None) -> Outcome:
    """What the sweep knows, or what the job says, whichever was said later. Who sees a job die knows that it did; that
    it has saved before, only the job knows."""
    if own is None:
        return known
    is_later = (
        (known.status == RUNNING != own.status and own.started == known.started)
        or known.status == WAITING
        or (own.started or "") > (known.started or "")
        or (own.status != RUNNING and (own.ended or "") > (known.ended or ""))
    )
    if not is_later:
        return known
    reason = known.reason if own.status == RUNNING else own.reason
    return replace(own, overrides=known.overrides, cluster_job=own.cluster_job or known.cluster_job, reason=reason)


def _stopped(sweep: Path, outcome: Outcome) -> Outcome:
    """A job that has not recorded its end itself. Where its launcher knows the reason, it has recorded that."""
    if outcome.status == RUNNING:
        outcome = replace(outcome, status=LOST, reason=outcome.reason or LOST_REASON)
    return measured(job_folder(sweep, outcome), sweep, outcome)


def _queued(submitted: Mapping[int, Outcome]) -> set[int]:
    """The numbers of those jobs that SLURM runs or will run. Where SLURM does not answer, all of them may run; where
    squeue cannot be run, those whose end is not recorded."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %t"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_SECONDS, check=True)
    except OSError as error:
        unended = {job for job, one in submitted.items() if one.status in (WAITING, RUNNING)}
        if unended:
            text = "squeue cannot be run here (%s), so jobs whose end is not recorded are assumed to be running"
            log.warning(f"{text}. Run this on a machine with squeue to see which have ended.", error.strerror)
        return unended
    except subprocess.SubprocessError as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        log.warning("squeue does not respond, so submitted jobs are assumed to be running: %s", reason)
        return {*submitted}
    rows = [line.split() for line in done.stdout.splitlines()]
    queue = {row[0] for row in rows if len(row) == 2 and row[1] != ENDING}
    return {job for job, one in submitted.items() if one.cluster_job in queue}
