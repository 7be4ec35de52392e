"""`command.json`: how a sweep was started, each time, in its folder."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm_hydra._printable import shell_line
from xlstm_hydra.runs import replace_file

from ._outcomes import log
from ._strict_json import Damaged, read_object

COMMAND_FILE = "command.json"
"""A list of commands, the last one at the end."""

_FIELDS = {"arguments", "cwd"}


@dataclass(frozen=True)
class Command:
    """A command line that was typed."""

    arguments: list[str]
    cwd: Path
    """The folder in which it was typed."""

    def __str__(self) -> str:
        return shell_line(["xlstm-hydra", *self.arguments])


def read_commands(folder: Path) -> list[Command]:
    """The commands that are recorded in the folder of a sweep, at least one.

    Raises:
        OSError: the file cannot be read.
        Damaged: it is not what a sweep writes.
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


def keep_command(folder: Path) -> None:
    """Add how this process was started to the list of commands."""
    file = folder / COMMAND_FILE
    try:
        commands = read_commands(folder)
    except FileNotFoundError:
        commands = []
    except Damaged as error:
        aside = file.with_name(f"{COMMAND_FILE}.damaged")
        file.replace(aside)
        log.warning("%s is damaged, and kept as %s: %s", file, aside.name, error)
        commands = []
    commands.append(Command(sys.argv[1:], Path.cwd()))
    content = [{"arguments": each.arguments, "cwd": str(each.cwd)} for each in commands]
    replace_file(file, json.dumps(content, indent=1) + "\n")
