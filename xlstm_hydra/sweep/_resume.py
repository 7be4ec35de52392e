"""`resume_sweep=DIR`: the command line of a sweep again, for what is missing or failed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.hydra import as_override
from xlstm_hydra.metadata import BOOKKEEPING, LAYOUT, kind_of

from ._alive import mended
from ._driver import COMMAND_FILE, finish
from ._inside import refuse_folders_outside, refuse_sweep_links
from ._outcome import COMPLETED, RECORD_FILE, read_record
from ._points import key_of, swept

RESUME_SWEEP = "resume_sweep"
SWEEP_DIR, RESUME = "hydra.sweep.dir", "hydra.sweeper.resume"
SWEEPER = "hydra/sweeper"
OURS = (f"{SWEEPER}=xlstm", f"{SWEEPER}=basic")
"""Sweepers whose points are those of ours."""
_OWN = (SWEEP_DIR, "hydra.sweep.subdir", RESUME)
"""What a sweep has from its folder, and cannot be typed anew."""
_FREE = ("data.path",)
"""Fields that change losses by what they name; the files themselves are compared by their fingerprint."""
_HOW = ("parallel", "logger", "distributed", "device", "hydra/launcher", "hydra/job_logging", "hydra/hydra_logging")
"""Groups that say how a job runs, and not what it computes."""


def expand_resume_sweep(arguments: Sequence[str]) -> list[str]:
    """The arguments of the command with those of the sweep that `resume_sweep=DIR` names in its place, and the other
    ones behind them. Where nothing is missing, the results are told, and the command ends with 0.

    Raises:
        ConfigError: there is no sweep, or what was typed would make its other jobs another sweep.
    """
    named = [text for text in arguments if text.partition("=")[0] == RESUME_SWEEP]
    if not named:
        return list(arguments)
    if len(named) > 1:
        raise _refused("given more than once", "Choose one sweep.")
    place = named[0].partition("=")[2].strip("'\"")
    if not place:
        raise _refused("needs the folder of a sweep", f"For example {RESUME_SWEEP}=multirun/2026-01-31/12-00-00.")
    folder = Path(place).expanduser().absolute()
    if not (folder / RECORD_FILE).exists():
        text = f"is not the folder of a sweep: there is no {RECORD_FILE} in it"
        raise ConfigError([Problem({RESUME_SWEEP: place}, text, "Give the folder that its -m has told.")])
    refuse_sweep_links(folder, RESUME_SWEEP)
    record = read_record(folder)
    refuse_folders_outside(folder, record, RESUME_SWEEP)
    record = mended(folder, record)
    typed = [text for text in arguments if text not in named and text not in ("-m", "--multirun")]
    _refuse_others(typed, {key for point in swept([one.overrides for one in record]) for key in point})
    if record and all(one.status == COMPLETED for one in record):
        print(f"nothing is missing: all {len(record)} jobs are completed")
        finish(folder)
        sys.exit(0)
    before = _without(_arguments(folder, place), typed)
    if other := next((text for text in before if key_of(text) == SWEEPER and text not in OURS), None):
        text, fix = f"its points are those of {other}", "Type its own command again, with the same hydra.sweep.dir."
        raise ConfigError([Problem({RESUME_SWEEP: place}, text, fix)])
    return [*before, as_override(SWEEP_DIR, str(folder)), f"{RESUME}=true", *typed]


def _refuse_others(typed: Sequence[str], points: set[str]) -> None:
    """Make sure that the jobs which are run now are trained as those which are completed."""
    problems = list(_problems(typed, points))
    if problems:
        raise ConfigError(problems)


def _problems(typed: Sequence[str], points: set[str]) -> Iterator[Problem]:
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
        elif not _is_how(key):
            text = "would make the jobs that are run now others than those that are completed"
            fix = "Begin another sweep in another folder, or go on with one job: resume=DIR/3, with what is to change."
            yield Problem.about(key, text, fix)


def _is_how(key: str) -> bool:
    """Whether a key says how jobs run, and not what comes of it."""
    if key.partition(".")[0] == "hydra" or key in (*_HOW, *_FREE):
        return True
    group, dot, _ = key.partition(".")
    is_fixed = group == "task" or key == "checkpoint.restore"
    return bool(dot) and not is_fixed and kind_of(key) in (LAYOUT, BOOKKEEPING)


def _arguments(folder: Path, place: str) -> list[str]:
    """How the sweep was started the last time. This process goes to the folder in which that was."""
    try:
        command = json.loads((folder / COMMAND_FILE).read_text(encoding="utf-8"))[-1]
        arguments, cwd = list(command["arguments"]), Path(command["cwd"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        text = f"how the sweep was started cannot be read from its {COMMAND_FILE}: {error}"
        fix = "A study of hydra/sweeper=optuna goes on by its own command, with the same hydra.sweep.dir."
        raise ConfigError([Problem({RESUME_SWEEP: place}, text, fix)]) from None
    if cwd != Path.cwd():
        if cwd.is_dir():
            os.chdir(cwd)
        text = "which is where it was started" if cwd.is_dir() else f"since {cwd}, where it was started, is not there"
        print(f"xlstm-hydra: the sweep goes on in {Path.cwd()}, {text}", file=sys.stderr)
    return arguments


def _without(arguments: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The recorded arguments that are not typed anew. Another launcher has other options."""
    keys = {key_of(text) for text in typed if "=" in text and not text.startswith("-")} | {SWEEP_DIR, RESUME}
    groups = tuple(f"{key.replace('/', '.')}." for key in keys if key.startswith("hydra/"))
    return [text for text in arguments if key_of(text) not in keys and not (groups and text.startswith(groups))]


def _refused(text: str, fix: str) -> ConfigError:
    return ConfigError([Problem.about(RESUME_SWEEP, text, fix)])
