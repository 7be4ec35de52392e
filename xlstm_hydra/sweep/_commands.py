"""`command.json`: the commands that started and resumed a sweep, and a check that these commands cannot load code.

A sweep folder may come from someone else. Unless the user trusts the folder, a recorded command may only choose options
of this package and set run fields to plain values. All other arguments are reported.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from xlstm_hydra._logging import log
from xlstm_hydra._printable import shell_line
from xlstm_hydra.configs import LocalLauncherConfig, RunConfig, SlurmLauncherConfig
from xlstm_hydra.runs import replace_file

from ._outcomes import Damaged, read_object

SUBDIR = "hydra.sweep.subdir"
"""Hydra key that sets the name of the job folder. The default name is the job number."""

COMMAND_FILE = "command.json"
"""File in the sweep folder that lists the commands of the sweep, oldest first."""

_FIELDS = {"arguments", "cwd"}

MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")

_FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp")
"""Flags that add a folder of config options. The folder may be given as the next argument."""

_GROUPS = {field.name for field in fields(RunConfig)} | {"parallel", "experiment", "debug"}

_OPTION = re.compile(r"[A-Za-z0-9][\w-]*(@\d+)?", re.ASCII)

_WORD = re.compile(r"[\w.,:&|*()\[\]/@%+-]*", re.ASCII)

_NAME = re.compile(r"(?!\.)[\w.-]*", re.ASCII)

_FIELD = re.compile(r"[A-Za-z]\w*", re.ASCII)

_PLAIN_NODE = re.compile(r"\$\{(hydra[.:]job\.(?:num|id|name)|(?!hydra\b)[A-Za-z]\w*(?:\.[A-Za-z]\w*)*)\}", re.ASCII)
"""Pattern of allowed interpolations: of the job number, the job name, or the value of a run field."""

_VALUES = (str, bool, int, float, type(None), dict, Glob, RangeSweep, IntervalSweep)
"""Types of override values that are accepted as plain, after lists and dicts are flattened."""

_NAMED = {
    "model_class": "imports a class",
    "config_class": "imports a class",
    "compilation_cache_dir": "loads compiled programs from this directory",
    "coordinator_address": "connects to another machine",
}
"""Fields that can load code or connect to other machines, with the reason shown to the user."""

_LOGGING = {"default", "none", "disabled", "stdout", "colorlog", "xlstm"}

_CHOICES: Mapping[str, set[str]] = {
    "hydra/launcher": {
        *("basic", "local", "slurm", "slurm_multinode", "submitit_local", "submitit_slurm", "joblib", "ray"),
    },
    "hydra/sweeper": {"xlstm", "basic"},
    "hydra/job_logging": _LOGGING,
    "hydra/hydra_logging": _LOGGING,
}
"""Allowed options by Hydra config group: those that Hydra, its launchers or this package provide."""

_BY_FIELD = {field.name for kind in (SlurmLauncherConfig, LocalLauncherConfig) for field in fields(kind)}

_LAUNCHER = (_BY_FIELD | {"n_jobs", "cpus_per_gpu", "mem_per_gpu", "mem_per_cpu"}) - {
    *("setup", "srun_args", "additional_parameters", "submitit_folder"),
}

_SETTINGS: Mapping[str, re.Pattern[str]] = {
    **{f"hydra.launcher.{name}": _WORD for name in _LAUNCHER},
    **{
        f"hydra.sweeper.{name}": _NAME
        for name in ("max_batch_size", "max_jobs", "num_samples", "seed", "on_invalid", "resume")
    },
    **{name: _NAME for name in ("hydra.verbose", "hydra.job.name", "hydra.job.chdir")},
    "hydra.mode": re.compile("MULTIRUN"),
}
"""Hydra and launcher settings that cannot load code, each with a pattern that string values must match."""


@dataclass(frozen=True)
class Command:
    """A recorded command line."""

    arguments: list[str]
    cwd: Path
    """Working directory in which the command was typed."""

    def __str__(self) -> str:
        return shell_line(["xlstm-hydra", *self.arguments])


def read_commands(folder: Path) -> list[Command]:
    """Read the commands recorded in a sweep folder. The list is never empty.

    Raises:
        OSError: the file cannot be read.
        Damaged: the file was not written by a sweep.
    """
    text = b'{"commands": ' + (folder / COMMAND_FILE).read_bytes() + b"}"
    commands = read_object(text, "a list of commands").get("commands")
    if not isinstance(commands, list) or not commands:
        raise Damaged("expected a list of commands")
    return [_command(number, each) for number, each in enumerate(commands)]


def _command(number: int, content: Any) -> Command:
    if not isinstance(content, dict) or content.keys() != _FIELDS:
        raise Damaged(f"[{number}]: expected an object with {' and '.join(sorted(_FIELDS))}")
    arguments, cwd = content["arguments"], content["cwd"]
    if not isinstance(arguments, list) or not all(isinstance(text, str) and "\0" not in text for text in arguments):
        raise Damaged(f"[{number}].arguments: expected a list of strings")
    if not isinstance(cwd, str) or not os.path.isabs(cwd) or "\0" in cwd:
        raise Damaged(f"[{number}].cwd: expected the absolute path of a folder")
    return Command(arguments, Path(cwd))


def append_command(folder: Path) -> None:
    """Append the command line of this process to `command.json`. A damaged file is renamed, and a new file is
    started."""
    file = folder / COMMAND_FILE
    try:
        commands = read_commands(folder)
    except FileNotFoundError:
        commands = []
    except Damaged as error:
        aside = file.with_name(f"{COMMAND_FILE}.damaged")
        file.replace(aside)
        log.warning("%s is damaged and was renamed to %s: %s", file, aside.name, error)
        commands = []
    commands.append(Command(sys.argv[1:], Path.cwd()))
    content = [{"arguments": each.arguments, "cwd": str(each.cwd)} for each in commands]
    replace_file(file, json.dumps(content, indent=1) + "\n")


def key_of(override: str) -> str:
    """Return the key of an override, without a leading `+`, `++` or `~`."""
    return override.lstrip("+~").partition("=")[0]


def loads_code(arguments: Sequence[str]) -> list[str]:
    """List the arguments of a recorded command that can load code or reach outside the sweep, each with the reason."""
    found = [f"{text} ({why})" for text in _joined(arguments) if (why := _why(text, arguments)) is not None]
    return found if {*MULTIRUN} & {*arguments} else [*found, "it does not start a sweep (-m is missing)"]


def _joined(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with each flag that takes a folder and its value combined into one string (`--config-dir
    DIR`)."""
    texts = iter(arguments)
    for text in texts:
        yield f"{text} {next(texts, '')}".rstrip() if text in _FOLDERS else text


def _why(text: str, arguments: Sequence[str]) -> str | None:
    if text in MULTIRUN:
        return None
    if text.startswith(_FOLDERS):
        return "adds a folder with options"
    if text.startswith("-"):
        return "a Hydra flag other than -m"
    if not text.isprintable():
        return "contains unprintable characters"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return "cannot be parsed as an override"
    if "${" in _PLAIN_NODE.sub("", text.replace("\\", "")):
        return "contains an interpolation"
    if not all(isinstance(value, _VALUES) for _, value in _leaves("", override._value)):
        return "its value is not a number, text, true, false, null, or a list of these"
    if override.package is not None or "@" in key_of(text):
        return None if key_of(text) == "from@_global_" and _is_option(override) else "changes the package of an option"
    if key_of(text) == SUBDIR:
        return _why_subdir(override, arguments)
    key = override.key_or_group
    return _why_hydra(key, override) if re.match(r"hydra\b", key) else _why_field(key, override)


def _why_hydra(key: str, override: Override) -> str | None:
    values = [value for _, value in _leaves(key, override._value)]
    if key in _CHOICES:
        return None if all(value in _CHOICES[key] for value in values) else "not a known option of this group"
    if key == "hydra.searchpath":
        is_ours = all(str(value).startswith("ckpt://") for value in values)
        return None if is_ours else "adds a folder with options"
    if key not in _SETTINGS:
        return "a Hydra setting that can load code or write to other folders"
    is_plain = all(not isinstance(value, str) or _SETTINGS[key].fullmatch(value) for value in values)
    return None if is_plain else "its value is not allowed"


def _why_subdir(override: Override, arguments: Sequence[str]) -> str | None:
    """Return the reason why a job folder could be outside the sweep folder, including through values interpolated in
    its name; None if it cannot."""
    for _, value in _leaves(SUBDIR, override._value):
        keys = {match[1] for match in _PLAIN_NODE.finditer(str(value))}
        is_far = any("/" in text for text in arguments if key_of(text) in keys)
        if is_far or str(value).startswith(("/", "~")) or ".." in str(value).split("/"):
            return "a job folder could be outside the sweep folder"
    return None


def _why_field(key: str, override: Override) -> str | None:
    group, dot, _ = key.partition(".")
    if group not in _GROUPS:
        return "not a known config key"
    if key == "task.device" or (not dot and not isinstance(override._value, dict)):
        return None if _is_option(override) else "its value is not the name of an option"
    for path, _ in _leaves(key, override._value):
        names = path.split(".")
        if not all(map(_FIELD.fullmatch, names)):
            return "contains an invalid field name"
        if why := _NAMED.get(names[-1]):
            return why
    return None


def _is_option(override: Override) -> bool:
    return all(
        value is None or (isinstance(value, str) and _OPTION.fullmatch(value)) or not isinstance(value, str | dict)
        for _, value in _leaves("", override._value)
    )


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the plain values in a parsed override value, each with its full key."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{path}.{name}", item)
        if not value:
            yield path, {}
    elif isinstance(value, list | ChoiceSweep):
        for item in value if isinstance(value, list) else value.list:
            yield from _leaves(path, item)
    else:
        yield path, value.text if isinstance(value, QuotedString) else value
