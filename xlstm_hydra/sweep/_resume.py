"""`resume_sweep=DIR`: the command line of a sweep again, for what is missing or failed."""

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
"""Lets the recorded command load code, and imports modules from the folder in which it was typed."""

SUBMITIT_FOLDER = "hydra.launcher.submitit_folder"

_NEW_FOLDER = re.compile(r"hydra\.launcher\.submitit_folder='?[^']*/\.submitit/[0-9a-f]{8}/%j'?")
"""How a sweep that was continued before has recorded that folder; the next one gets another."""

SUBMITIT = ("local", "slurm", "slurm_multinode", "submitit_local", "submitit_slurm")
"""Launchers whose jobs return pickled results."""

OURS = (f"{SWEEPER}=xlstm", f"{SWEEPER}=basic")
"""Sweepers whose points are those of ours."""

_OWN = (SWEEP_DIR, "hydra.sweep.subdir", RESUME)
"""What a sweep has from its folder, and cannot be typed anew."""

_FREE = ("data.path",)
"""Fields that change losses by what they name; the files themselves are compared by their fingerprint."""

_HOW = ("parallel", "logger", "distributed", "device", "hydra/launcher", "hydra/job_logging", "hydra/hydra_logging")
"""Groups that say how a job runs, and not what it computes."""


def expand_resume_sweep(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the command, with those of the sweep that `resume_sweep=DIR` names instead of it, and the
    other ones behind them. If nothing is missing, print the results and leave with status 0.

    Raises:
        ConfigError: there is no sweep, or what was typed would make its other jobs another sweep.
    """
    named = [text for text in arguments if text.partition("=")[0] == RESUME_SWEEP]
    if not named:
        return list(arguments)
    if len(named) > 1:
        raise _refused("given more than once", "Choose one sweep.")
    path = named[0].partition("=")[2].strip("'\"")
    if not path:
        raise _refused("needs the folder of a sweep", f"For example {RESUME_SWEEP}=multirun/2026-01-31/12-00-00.")
    folder = Path(path).expanduser().absolute()
    if not (folder / RECORD_FILE).exists():
        text = f"is not the folder of a sweep: there is no {RECORD_FILE} in it"
        raise ConfigError([Problem({RESUME_SWEEP: path}, text, "Give the folder that its -m has told.")])
    refuse_sweep_links(folder, RESUME_SWEEP)
    known, faults = scan_record(folder)
    refuse_folders_outside(folder, known, RESUME_SWEEP)
    record = reconciled(folder, known)
    typed = [text for text in arguments if text not in (*named, TRUST, "-m", "--multirun")]
    searched = {key for point in swept([one.overrides for one in record]) for key in point}
    if problems := list(_conflicts(typed, searched)):
        raise ConfigError(problems)
    is_whole = bool(known) and len(record) >= len(known) + len(faults)  # else it is not known how many jobs there were
    if is_whole and all(one.status == COMPLETED for one in record):
        print(f"nothing is missing: all {len(record)} jobs are completed")
        finish_sweep(folder)
        sys.exit(0)
    command = _last_command(folder, path)
    before = _without(command.arguments, typed)
    if other := next((text for text in before if key_of(text) == SWEEPER and text not in OURS), None):
        text, fix = f"its points are those of {other}", "Type its own command again, with the same hydra.sweep.dir."
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
    """The arguments that would have the jobs run now differ from the completed ones."""
    for text in typed:
        if text.startswith("--from") or text.startswith("resume="):
            yield Problem.about(f"{RESUME_SWEEP} and {key_of(text)}", "cannot be given together", "Choose one.")
        if text.startswith("-") or not ("=" in text or text.startswith("~")):
            continue
        key = key_of(text)
        if key in points:
            fix = "Points cannot be added: begin another sweep in another folder."
            yield Problem.about(key, "the jobs of this sweep differ in it", fix)
        elif key in _OWN:
            yield Problem.about(key, f"follows from {RESUME_SWEEP}", "Leave it out.")
        elif not _may_change(key):
            text = "would make the jobs that are run now others than those that are completed"
            fix = "Begin another sweep in another folder, or go on with one job: resume=DIR/3, with what is to change."
            yield Problem.about(key, text, fix)


def _may_change(key: str) -> bool:
    """Whether a key says how jobs run, and not what comes of it."""
    if key.partition(".")[0] == "hydra" or key in (*_HOW, *_FREE):
        return True
    group, dot, _ = key.partition(".")
    is_fixed = group == "task" or key == "checkpoint.restore"
    return bool(dot) and not is_fixed and kind_of(key) in (LAYOUT, BOOKKEEPING)


def _last_command(folder: Path, path: str) -> Command:
    """How the sweep was started the last time.

    Raises:
        ConfigError: it is not recorded, or by something else than a sweep.
    """
    try:
        return read_commands(folder)[-1]
    except (OSError, Damaged) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        text = f"how the sweep was started cannot be read from its {COMMAND_FILE}: {reason}"
        fix = "A study of hydra/sweeper=optuna goes on by its own command, with the same hydra.sweep.dir."
        raise ConfigError([Problem.about(f"{RESUME_SWEEP}={path}", text, fix)]) from None


def _refuse_code(folder: Path, path: str, command: Command, arguments: Sequence[str]) -> None:
    """Make sure that the recorded command loads no code: the folder may come from someone else.

    Raises:
        ConfigError: with all that can.
    """
    found = loads_code(arguments)
    if not (_is_here(command.cwd) or not command.cwd.is_dir() or command.cwd in folder.parents):
        found.append(f"it was typed in {command.cwd}, which is neither the current folder nor above the sweep's")
    if found:
        text = f"its recorded command can load code or reach other folders: {'; '.join(found)}"
        fix = f"It is: {command}. If you trust it, add {TRUST}. Otherwise begin another sweep with -m."
        raise ConfigError([Problem.about(f"{RESUME_SWEEP}={path}", text, fix)])


def _is_here(folder: Path) -> bool:
    try:
        return folder.samefile(Path.cwd())
    except OSError:
        return False


def _go_to(cwd: Path, is_trusted: bool) -> None:
    """Change to the folder in which the sweep was started. Its modules are imported if the user trusts the folder."""
    if _is_here(cwd):
        return
    text = f"since {cwd}, where it was started, is not there"
    if cwd.is_dir():
        change_folder(cwd, import_modules=is_trusted)
        text = "which is where it was started"
        text += "" if is_trusted else f"; Python modules in that folder are not imported ({TRUST} imports them)"
    print(printable(f"xlstm-hydra: the sweep goes on in {Path.cwd()}, {text}"), file=sys.stderr)


def _new_submitit_folder(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Where jobs leave their results, for launchers that read them by unpickling: not where something may lie."""
    launchers = [text.partition("=")[2] for text in arguments if key_of(text) == "hydra/launcher"]
    is_typed = any(key_of(text) == SUBMITIT_FOLDER for text in arguments)
    if is_typed or not launchers or launchers[-1] not in SUBMITIT:
        return []
    return [as_override(SUBMITIT_FOLDER, f"{folder}/.submitit/{secrets.token_hex(4)}/%j")]


def _without(arguments: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The recorded arguments that are not typed anew. Another launcher has other options."""
    keys = {key_of(text) for text in typed if "=" in text and not text.startswith("-")} | {SWEEP_DIR, RESUME}
    groups = tuple(f"{key.replace('/', '.')}." for key in keys if key.startswith("hydra/"))
    others = [text for text in arguments if key_of(text) not in keys and not (groups and text.startswith(groups))]
    return [text for text in others if not _NEW_FOLDER.fullmatch(text)]


def _refused(text: str, fix: str) -> ConfigError:
    return ConfigError([Problem.about(RESUME_SWEEP, text, fix)])
