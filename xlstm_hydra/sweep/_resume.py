"""`resume_sweep=DIR`: run the recorded command of a sweep again, but only the missing and failed jobs."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlstm_hydra._printable import printable
from xlstm_hydra.configs import BOOKKEEPING, LAYOUT
from xlstm_hydra.hydra import as_override
from xlstm_hydra.own_modules import change_folder
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import kind_of

from ._commands import COMMAND_FILE, Command, key_of, loads_code, read_commands
from ._jobs import reconciled, swept
from ._outcomes import COMPLETED, RECORD_FILE, Damaged, scan_record
from ._results import finish_sweep
from ._sweep_folder import refuse_folders_outside, refuse_sweep_links

RESUME_SWEEP = "resume_sweep"

SWEEP_DIR, RESUME = "hydra.sweep.dir", "hydra.sweeper.resume"

SWEEPER = "hydra/sweeper"

TRUST = "--trust"
"""Flag that allows the recorded command to load code, and to import modules from the folder where it was typed."""

SUBMITIT_FOLDER = "hydra.launcher.submitit_folder"

_NEW_FOLDER = re.compile(r"hydra\.launcher\.submitit_folder='?[^']*/\.submitit/[0-9a-f]{8}/%j'?")
"""Pattern of the override by which an earlier resumption set the submitit folder. Each resumption uses a new folder."""

SUBMITIT = ("local", "slurm", "slurm_multinode", "submitit_local", "submitit_slurm")
"""Launchers whose jobs return pickled results."""

OURS = (f"{SWEEPER}=xlstm", f"{SWEEPER}=basic")
"""Sweepers that produce the same points as the sweeper of this package."""

_OWN = (SWEEP_DIR, "hydra.sweep.subdir", RESUME)
"""Keys that are determined by the sweep folder and cannot be changed."""

_FREE = ("data.path",)
"""Fields that may change although they affect the loss: data files are identified by their fingerprint, not by their
path."""

_HOW = ("parallel", "logger", "distributed", "device", "hydra/launcher", "hydra/job_logging", "hydra/hydra_logging")
"""Config groups that affect how a job runs, but not its results."""


def expand_resume_sweep(arguments: Sequence[str]) -> list[str]:
    """Replace `resume_sweep=DIR` with the recorded arguments of the sweep in DIR, followed by the other arguments. If
    all jobs are completed, print the results and exit with status 0.

    Raises:
        ConfigError: DIR does not contain a sweep, its command is not trusted, or an argument would make the remaining
        jobs differ from the completed ones.
    """
    named = [text for text in arguments if text.partition("=")[0] == RESUME_SWEEP]
    if not named:
        return list(arguments)
    if len(named) > 1:
        raise _refused("given more than once", "Choose one sweep.")
    path = named[0].partition("=")[2].strip("'\"")
    if not path:
        raise _refused("requires a sweep folder", f"For example {RESUME_SWEEP}=multirun/2026-01-31/12-00-00.")
    folder = Path(path).expanduser().absolute()
    if not (folder / RECORD_FILE).exists():
        text = f"is not a sweep folder: it has no {RECORD_FILE}"
        raise ConfigError([Problem({RESUME_SWEEP: path}, text, "Choose the folder that -m printed at the end.")])
    refuse_sweep_links(folder, RESUME_SWEEP)
    known, faults = scan_record(folder)
    refuse_folders_outside(folder, known, RESUME_SWEEP)
    record = reconciled(folder, known)
    typed = [text for text in arguments if text not in (*named, TRUST, "-m", "--multirun")]
    searched = {key for point in swept([one.overrides for one in record]) for key in point}
    if problems := list(_conflicts(typed, searched)):
        raise ConfigError(problems)
    is_whole = bool(known) and len(record) >= len(known) + len(faults)  # otherwise the number of jobs is unknown
    if is_whole and all(one.status == COMPLETED for one in record):
        print(f"nothing is missing: all {len(record)} jobs are completed")
        finish_sweep(folder)
        sys.exit(0)
    command = _last_command(folder, path)
    before = _without(command.arguments, typed)
    if other := next((text for text in before if key_of(text) == SWEEPER and text not in OURS), None):
        text, fix = (
            f"cannot resume a sweep whose points come from {other}",
            "Run the original command again with the same hydra.sweep.dir.",
        )
        raise ConfigError([Problem({RESUME_SWEEP: path}, text, fix)])
    is_trusted = TRUST in arguments
    if is_trusted:
        print(f"xlstm-hydra: the recorded command of the sweep is: {command}", file=sys.stderr)
    else:
        _refuse_code(folder, path, command, before)
    _go_to(command.cwd, is_trusted)
    own = [as_override(SWEEP_DIR, str(folder)), f"{RESUME}=true"]
    return [*before, *own, *([] if is_trusted else _new_submitit_folder(folder, [*before, *typed])), *typed]


def _conflicts(typed: Sequence[str], points: set[str]) -> Iterator[Problem]:
    """Yield a problem for each argument that would make the remaining jobs differ from the completed ones."""
    for text in typed:
        if text.startswith("--from") or text.startswith("resume="):
            yield Problem.about(f"{RESUME_SWEEP} and {key_of(text)}", "cannot be given together", "Choose one.")
        if text.startswith("-") or not ("=" in text or text.startswith("~")):
            continue
        key = key_of(text)
        if key in points:
            fix = "Points cannot be added. Start a new sweep in another folder."
            yield Problem.about(key, "cannot be changed, because the jobs of this sweep have different values", fix)
        elif key in _OWN:
            yield Problem.about(key, f"is set by {RESUME_SWEEP}", "Remove it.")
        elif not _may_change(key):
            text = "would make the remaining jobs differ from the completed ones"
            fix = (
                "Start a new sweep in another folder, or continue one job (resume=DIR/3 for job 3) with the new value."
            )
            yield Problem.about(key, text, fix)


def _may_change(key: str) -> bool:
    """True if a key affects how jobs run, but not their results."""
    if key.partition(".")[0] == "hydra" or key in (*_HOW, *_FREE):
        return True
    group, dot, _ = key.partition(".")
    is_fixed = group == "task" or key == "checkpoint.restore"
    return bool(dot) and not is_fixed and kind_of(key) in (LAYOUT, BOOKKEEPING)


def _last_command(folder: Path, path: str) -> Command:
    """Return the command that last started the sweep.

    Raises:
        ConfigError: the command is not recorded, or the file was not written by a sweep.
    """
    try:
        return read_commands(folder)[-1]
    except (OSError, Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        text = f"the command of this sweep cannot be read from {COMMAND_FILE}: {reason}"
        fix = "To resume an Optuna study, run the original command of the study again with the same hydra.sweep.dir."
        raise ConfigError([Problem.about(f"{RESUME_SWEEP}={path}", text, fix)]) from None


def _refuse_code(folder: Path, path: str, command: Command, arguments: Sequence[str]) -> None:
    """Check that the recorded command cannot load code, because the sweep folder may come from someone else.

    Raises:
        ConfigError: lists every argument that can load code.
    """
    found = loads_code(arguments)
    if not (_is_here(command.cwd) or not command.cwd.is_dir() or command.cwd in folder.parents):
        found.append(
            f"it was started in {command.cwd}, which is neither the current folder nor a parent of the sweep folder"
        )
    if found:
        text = f"its recorded command can load code or access other folders: {'; '.join(found)}"
        fix = f"The command is: {command}. If you trust it, add {TRUST}. Otherwise start a new sweep with -m."
        raise ConfigError([Problem.about(f"{RESUME_SWEEP}={path}", text, fix)])


def _is_here(folder: Path) -> bool:
    try:
        return folder.samefile(Path.cwd())
    except OSError:
        return False


def _go_to(cwd: Path, is_trusted: bool) -> None:
    """Change to the folder where the sweep was started. Modules are imported from this folder only if the user trusts
    it."""
    if _is_here(cwd):
        return
    text = f"because the folder where it was started, {cwd}, does not exist"
    if cwd.is_dir():
        change_folder(cwd, import_modules=is_trusted)
        text = "where it was started"
        text += "" if is_trusted else f"; Python modules in that folder are not imported ({TRUST} imports them)"
    print(printable(f"xlstm-hydra: resuming the sweep in {Path.cwd()}, {text}"), file=sys.stderr)


def _new_submitit_folder(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Return an override that sets a new folder for pickled job results, because unpickling an existing file could run
    code. Return no override if the launcher does not use pickles, or the folder was typed."""
    launchers = [text.partition("=")[2] for text in arguments if key_of(text) == "hydra/launcher"]
    is_typed = any(key_of(text) == SUBMITIT_FOLDER for text in arguments)
    if is_typed or not launchers or launchers[-1] not in SUBMITIT:
        return []
    return [as_override(SUBMITIT_FOLDER, f"{folder}/.submitit/{secrets.token_hex(4)}/%j")]


def _without(arguments: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return the recorded arguments, except those that are typed again. If a new launcher is typed, the settings of the
    old launcher are dropped."""
    keys = {key_of(text) for text in typed if "=" in text and not text.startswith("-")} | {SWEEP_DIR, RESUME}
    groups = tuple(f"{key.replace('/', '.')}." for key in keys if key.startswith("hydra/"))
    others = [text for text in arguments if key_of(text) not in keys and not (groups and text.startswith(groups))]
    return [text for text in others if not _NEW_FOLDER.fullmatch(text)]


def _refused(text: str, fix: str) -> ConfigError:
    return ConfigError([Problem.about(RESUME_SWEEP, text, fix)])
