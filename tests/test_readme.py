"""What the README shows is what happens."""

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


def run(command, folder):
    """Output of a command line of ours, without the terminal that would draw a progress bar."""
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
    return (done.stdout + done.stderr).replace(str(folder), "$PWD")


def without_numbers(text):
    """The lines, in which neither numbers nor the widths of columns of numbers count."""
    return [re.sub(" +", " ", re.sub(r"[\d,]*\d(\.\d+)?", "N", line)) for line in text.strip().splitlines()]


def is_refused(block):
    return block[-1].startswith("xlstm-hydra: ")


def is_training(block):
    return not is_refused(block) and not is_of_saved_run(block)


def is_of_saved_run(block):
    return "outputs/my_run" in block[0]


@pytest.mark.parametrize("block", list(filter(is_refused, CONSOLE)), ids=lambda block: block[0])
def test_a_refused_command_prints_what_the_readme_shows(block, tmp_path):
    command, expected = block
    assert run(command, tmp_path).strip() == expected.strip()


@pytest.mark.slow
@pytest.mark.parametrize("block", list(filter(is_training, CONSOLE)), ids=lambda block: block[0])
def test_a_training_command_prints_what_the_readme_shows_up_to_the_numbers(block, tmp_path):
    command, expected = block
    assert without_numbers(run(command, tmp_path)) == without_numbers(expected)


@pytest.mark.slow
def test_what_the_readme_does_with_a_saved_run(tmp_path, monkeypatch, capsys):
    for command, expected in filter(is_of_saved_run, CONSOLE):
        assert without_numbers(run(command, tmp_path)) == without_numbers(expected), command
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


def test_the_plan_of_the_readme_is_made_without_hydra(capsys):
    [snippet] = [code for code in PYTHON if "make_plan" in code]
    exec(snippet, {})
    first, told = capsys.readouterr().out.split("\n", 1)
    assert first.startswith("True ") and told.startswith("plan of mLSTMv1 with")


def test_the_two_commands_install_what_the_project_declares():
    commands = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    assert [command.partition("&&")[0].strip() for command in commands] == ["python3 -m venv .venv"] * 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "xlstm-hydra" in project["scripts"] and commands[0].endswith("xlstm-hydra")
    assert "test" in project["optional-dependencies"] and ".[test]" in commands[1]


def test_every_path_in_the_map_exists():
    paths = re.findall(r"`((?:xlstm_hydra|conf|hydra_plugins)[\w/.]*)`", README)
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists(), path
