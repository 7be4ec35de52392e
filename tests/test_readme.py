"""What the README shows is what happens."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = [block.split("\n", 1) for block in re.findall(r"```console\n\$ (.*?)\n?```", README, re.DOTALL)]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(command, folder):
    """Output of a command line that begins with `xlstm-hydra`, without the terminal that would draw a progress bar."""
    args = [sys.executable, "-m", "xlstm_hydra", *shlex.split(command)[1:]]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(args, cwd=folder, capture_output=True, text=True, env=environment, timeout=600)
    return done.stdout + done.stderr


def without_numbers(text):
    return [re.sub(r"[\d,]*\d(\.\d+)?", "N", line) for line in text.strip().splitlines()]


def is_training(block):
    return "problems:" not in block[-1]


@pytest.mark.parametrize("block", [b for b in CONSOLE if not is_training(b)], ids=lambda block: block[0])
def test_a_refused_command_prints_what_the_readme_shows(block, tmp_path):
    command, expected = block
    assert run(command, tmp_path).strip() == expected.strip()


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in CONSOLE if is_training(b)], ids=lambda block: block[0])
def test_a_training_command_prints_what_the_readme_shows_up_to_the_numbers(block, tmp_path):
    command, expected = block
    assert without_numbers(run(command, tmp_path)) == without_numbers(expected)


@pytest.mark.slow
def test_a_checkpoint_gives_its_config_back_and_is_continued_as_the_readme_says(tmp_path, monkeypatch, capsys):
    [snippet] = [code for code in PYTHON if "from_metadata" in code]
    [resume] = re.findall(r"`(xlstm-hydra checkpoint\.restore=[^`]*)`", README)
    fast = "trainer.simulated_devices=8 trainer.eval_batches=0"
    run(f"xlstm-hydra trainer.max_steps=20 hydra.run.dir=outputs/my_run {fast}", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert capsys.readouterr().out == "1 128\n"
    assert "step 40/40" in run(f"{resume} {fast}", tmp_path)


def test_the_program_of_the_readme_composes_checks_and_instantiates():
    [snippet] = [code for code in PYTHON if "compose(" in code]
    names = {}
    exec(snippet, names)
    assert names["run"].parallel.fsdp_axis_size == names["model"].parallel.fsdp_axis_size == 8
    assert names["model"].model_class.__name__ == "mLSTMv1"


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
