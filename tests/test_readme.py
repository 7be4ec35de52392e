"""The commands of the README run, and its figures are right."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = [block.split("\n", 1) for block in re.findall(r"```console\n\$ (.*?)\n?```", README, re.DOTALL)]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(command, folder, status=0):
    """Output of a command line with this exit status, without a terminal, so that there is no progress bar."""
    program, *args = shlex.split(command)
    module = {"xlstm-hydra": "xlstm_hydra.cli.main", "xlstm-metadata": "xlstm_hydra.cli.metadata"}[program]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / ".cache")}  # nothing is compiled before
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


FIGURES = (
    r"^mesh +\d.*|^model +.*|^changed +.*? \(|^plan of .*|^total .*"
    r"|^a step takes .*|^\d+ layouts of .*|^ ?\d+ +[\d.]+ +[\d.]+ +\w+ +parallel=.*|^xlstm-hydra .*"
)
"""Lines with figures that are the same on every machine."""


def assert_same_figures(text, expected):
    """Counts and plans are equal, and losses are close: the corpus differs between versions of Python."""
    assert re.findall(FIGURES, text, re.MULTILINE) == re.findall(FIGURES, expected, re.MULTILINE)
    found, shown = (re.findall(r"(\w+ )?loss +([\d.]+)", part) for part in (text, expected))
    assert [name for name, _ in found] == [name for name, _ in shown]
    assert [float(value) for _, value in found] == pytest.approx([float(value) for _, value in shown], rel=0.05)


def keys_and_values(text):
    """Keys and values in a message, and the number of problems or points."""
    return re.findall(r"[\w.]+=[^\s:,]+|\d+ problems|\d+ of \d+ points", text)


def is_refused(block):
    return block[-1].startswith("xlstm-hydra: ")


def is_training(block):
    return not is_refused(block) and not is_of_saved_run(block)


def is_of_saved_run(block):
    return "outputs/my_run" in block[0]


@pytest.mark.parametrize("block", list(filter(is_refused, CONSOLE)), ids=lambda block: block[0])
def test_a_rejected_command_has_the_keys_and_values_of_the_readme(block, tmp_path):
    command, expected = block
    text = run(command, tmp_path, status=2)
    assert keys_and_values(text) == keys_and_values(expected)


@pytest.mark.slow
@pytest.mark.parametrize("block", list(filter(is_training, CONSOLE)), ids=lambda block: block[0])
def test_a_training_command_prints_the_values_of_the_readme(block, tmp_path):
    command, expected = block
    assert_same_figures(run(command, tmp_path), expected)


@pytest.mark.slow
def test_the_commands_of_the_readme_for_a_saved_run(tmp_path, monkeypatch, capsys):
    for command, expected in filter(is_of_saved_run, CONSOLE):
        assert_same_figures(run(command, tmp_path), expected)
    [generate] = [line for line in README.splitlines() if "task=generate task.prompt" in line]
    assert "def " in run(generate, tmp_path)
    monkeypatch.chdir(tmp_path)
    load, read = ([code for code in PYTHON if word in code] for word in ("load_checkpoint", "from_metadata"))
    names = {"tokens": np.zeros((2, 8), int)}
    exec(load[0], names)
    assert names["logits"].shape == (2, 8, 256)
    capsys.readouterr()
    exec(read[0], {})
    assert capsys.readouterr().out == "1 128\n"


def test_the_program_of_the_readme_composes_checks_and_instantiates():
    [snippet] = [code for code in PYTHON if "compose(" in code]
    names = {}
    exec(snippet, names)
    assert names["run"].parallel.fsdp_axis_size == names["model"].parallel.fsdp_axis_size == 8
    assert names["model"].model_class.__name__ == "mLSTMv1"


def test_the_plan_of_the_readme_does_not_use_hydra(capsys):
    [snippet] = [code for code in PYTHON if "make_plan" in code]
    exec(snippet, {})
    first, told = capsys.readouterr().out.split("\n", 1)
    assert first.startswith("True ") and told.startswith("plan of mLSTMv1 with")


def test_the_install_commands_match_the_project():
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    assert [command.partition("&&")[0].strip() for command in commands] == ["python3 -m venv .venv"] * 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "xlstm-hydra" in project["scripts"] and commands[0].endswith("xlstm-hydra")
    assert "test" in project["optional-dependencies"] and ".[test]" in commands[1]


def test_every_path_in_the_map_exists():
    rows = re.findall(r"^\| (`.*?) \|", README.partition("## Map of the code")[2], re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`([\w/.]+)`", row)]
    assert {path.name for path in (ROOT / "xlstm_hydra").iterdir() if (path / "__init__.py").exists()} <= {
        path.rstrip("/") for path in paths
    }
    for path in paths:
        assert (ROOT / "xlstm_hydra" / path).exists(), path
