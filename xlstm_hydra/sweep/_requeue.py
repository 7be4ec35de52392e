"""The end of a job's batch script: a job that was stopped at its time limit is put back into the queue, unless it would
be stopped there again without a new step."""

from __future__ import annotations

import logging
import os
import re
import shlex
from pathlib import Path

from xlstm_hydra.configs import SlurmLauncherConfig
from xlstm_hydra.preemption import STATUS

log = logging.getLogger(__name__)

NO_PROGRESS = 76
"""Exit status of a job that was stopped at its time limit twice, with no new checkpoint in between."""

_TAGS = {"%j": '"$job"', "%A": '"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"', "%a": '"$SLURM_ARRAY_TASK_ID"'}
"""Parts of submitit's folder, in the words of the shell."""


def note_run_folder(run: Path) -> None:
    """Write down the folder of a job's run for its batch script, which looks there for new checkpoints. If the file
    cannot be written, log a warning."""
    import submitit

    environment = submitit.JobEnvironment()
    file = environment.paths.folder / f"{environment.job_id}_run"
    try:
        file.write_text(f"{run.absolute()}\n", encoding="utf-8")
    except OSError as error:
        log.warning(
            "%s: cannot be written, so the batch script does not find new checkpoints: %s", file, error.strerror
        )


def teardown(config: SlurmLauncherConfig) -> list[str]:
    """Lines of the batch script that follow the run."""
    # SLURM_JOB_ID of an array's last element is that of the whole array.
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
    """A folder of submitit's, with its tags as variables of the batch script."""
    parts = re.split("(%[jAa])", os.path.abspath(os.path.expanduser(folder)))
    return "".join(_TAGS[part] if part in _TAGS else shlex.quote(part) for part in parts if part)
