"""The README and the pages of docs/: their blocks of code, the commands in them, and what a page shows of their output.

- A `console` block is run; its output may leave lines out, or parts of a line, as `...`.
- An `sh` block needs a cluster, a GPU or hours: its configs are composed and checked.
- A `python` block is run. A block with a title is a file, written before anything of its page is run.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PROGRAMS = {"xlstm-hydra": "xlstm_hydra.cli.main", "xlstm-metadata": "xlstm_hydra.cli.metadata"}
FENCE = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TOKENS = re.compile(
    r"(?P<loss>(?<=loss )\d+\.\d+)|(?P<elided> *\.\.\. *)"
    r"|(?P<number>\d{4}-\d\d-\d\d[/ ][\d:,-]+|\d+:\d\d\b|[\d,]+(?= tokens/s)|\d+\.\d+)"
)
"""Parts of a line of output that vary."""


class Block(NamedTuple):
    """A block of code of a page."""

    language: str
    title: str
    text: str


class Command(NamedTuple):
    """A command of a console block, with the output that the page shows."""

    text: str
    output: str

    @property
    def status(self):
        return 2 if self.is_rejected else 0

    @property
    def is_rejected(self):
        return self.output.startswith("xlstm-hydra: ")

    @property
    def is_light(self):
        return self.is_rejected or "--cfg" in self.text


def blocks(page, *languages):
    """The blocks of a page in these languages, with the files that they include."""
    found = [Block(*match.groups(default="")) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [block._replace(text=_included(block.text)) for block in found if block.language in languages]


def _included(text):
    return re.sub(r'^--8<-- "(.*)"$', lambda match: (ROOT / match[1]).read_text().rstrip(), text, flags=re.MULTILINE)


def commands(*found):
    """The commands of console blocks."""
    for block in found:
        parts = re.split(r"^\$ (.*)\n", _joined(block.text), flags=re.MULTILINE)[1:]
        yield from map(Command, parts[::2], parts[1::2])


def lines(*found):
    """The command lines of sh blocks."""
    texts = (line for block in found for line in _joined(block.text).splitlines())
    return [text for text in texts if text.strip() and not text.startswith("#")]


def _joined(text):
    return re.sub(r" *\\\n *", " ", text)


def write_files(page, folder):
    """Write the files that a page shows under their names."""
    for block in blocks(page, "python", "yaml"):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)


def run(command, folder):
    """Output of a command of a console block, run in a folder as in a terminal that draws no progress bar."""
    program, *args = shlex.split(command.text)
    name = [sys.executable] if program == "python" else [sys.executable, "-c", _started(program)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_NUM", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [*name, *args], cwd=folder, env=environment, timeout=600, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == command.status, done.stdout
    return done.stdout


def _started(program):
    return f"from {PROGRAMS[program]} import main; main()"


def run_page(page, folder):
    """Run what a page shows, from its first block to its last, in the current folder."""
    write_files(page, folder)
    names = {"tokens": np.zeros((2, 8), int)}
    for block in blocks(page, "console", "python"):
        for command in commands(block) if block.language == "console" else ():
            if not command.is_light:
                assert_shown(command, run(command, folder))
        if block.language == "python" and not block.title:
            exec(block.text, names)


def assert_shown(command, found):
    """The output that a page shows is the output of the command. Times, rates and other measured numbers vary with the
    machine, and losses a little with the version of Python, whose library is the corpus."""
    found = "".join(f"{_narrow(line)}\n" for line in found.splitlines())
    exact = "task=plan" in command.text
    lines = (".*?" if line == "..." else _pattern(_narrow(line), exact) for line in command.output.splitlines())
    match = re.search(rf"\A{''.join(lines)}\Z", found, re.DOTALL)
    assert match, f"$ {command.text}\n{command.output}\nis not what was printed:\n{found}"
    shown = re.findall(r"(?<=loss )\d+\.\d+", command.output)
    assert [*map(float, match.groups())] == pytest.approx([*map(float, shown)], rel=0.05)


def _narrow(line):
    """The line with single spaces: the widths of columns depend on what is in them."""
    return re.sub(" +", " ", line).rstrip()


def _pattern(line, exact):
    """A regular expression for a line of output."""
    text, end = "", 0
    for token in TOKENS.finditer(line):
        number = re.escape(token[0]) if exact else r"[\d.,:/ -]+"
        text += re.escape(line[end : token.start()])
        text += {"loss": r"(\d+\.\d+)", "elided": r"[^\n]*?", "number": number}[token.lastgroup or ""]
        end = token.end()
    return text + re.escape(line[end:]) + r"\n"
