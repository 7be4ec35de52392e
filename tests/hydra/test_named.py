"""Nothing is imported from a folder that is given as a saved run or sweep, even if it is the current folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from saved import composed, save

from xlstm_hydra.runs import named_folders, run_folders

SCRIPTS = Path(sys.executable).parent
COMMANDS = {
    "--from": ["-c", "from xlstm_hydra.cli.main import main; main()", "--from", "{}", "--cfg", "job"],
    "resume= as a module": ["-m", "xlstm_hydra", "resume={}", "--cfg", "job"],
    "a config source": ["-m", "xlstm_hydra", "hydra.searchpath=[ckpt://{}]", "model=ckpt", "--cfg", "job"],
    "resume_sweep=": ["-m", "xlstm_hydra", "resume_sweep={}"],
    "task.checkpoint": ["-m", "xlstm_hydra", "task=evaluate", "task.checkpoint={}", "--cfg", "job"],
    "xlstm-metadata overrides": ["-c", "from xlstm_hydra.cli.metadata import main; main()", "overrides", "{}"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a Hydra plugin that prints when it is imported."""
    folder = tmp_path_factory.mktemp("run")
    save(folder, composed())
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "own.py").write_text("print('IMPORTED')\n")
    return folder


def printed(arguments, folder):
    """Output of a command in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_plugin_in_a_run_folder_is_not_imported_from_the_current_folder(run, arguments):
    text = printed([text.format(run) for text in arguments], run)
    assert text and "IMPORTED" not in text


def test_a_plugin_in_the_current_folder_is_imported_if_no_run_is_given(run):
    assert "IMPORTED" in printed(["-m", "xlstm_hydra", "--cfg", "job"], run)


PLACES = {
    "a run": "run",
    "a step": "run@20",
    "quoted": "'run@20'",
    "its checkpoints": "run/checkpoints",
    "a checkpoint": "run/checkpoints/20",
    "a file": "run/checkpoints/20/metadata/metadata",
    "its copy of the metadata": "run/metadata.json",
    "a link": "latest",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_form_of_a_checkpoint_path_gives_its_run_folder(tmp_path, monkeypatch, place):
    save(tmp_path / "run", composed())
    (tmp_path / "run" / "metadata.json").write_text("{}")
    (tmp_path / "latest").symlink_to("run/checkpoints/20")
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "run" in run_folders([place]) and tmp_path not in run_folders([place])


def test_the_folder_of_a_checkpoint_that_was_copied_is_known_by_its_metadata_file(tmp_path):
    save(tmp_path / "run", composed())
    (tmp_path / "run" / "checkpoints" / "20").rename(tmp_path / "copy")
    found = run_folders([str(tmp_path / "copy" / "metadata" / "metadata")])
    assert tmp_path / "copy" in found and tmp_path not in found


def test_the_folder_of_a_sweep_is_known_by_its_jobs(tmp_path):
    save(tmp_path / "sweep" / "lr=1" / "0", composed())
    (tmp_path / "sweep" / "sweep.jsonl").touch()
    found = run_folders([str(tmp_path / "sweep" / "lr=1" / "0")])
    assert tmp_path / "sweep" in found and tmp_path not in found


KEYS = ["--from=RUN", "resume=RUN", "resume='RUN@4'", "resume_sweep=RUN", "+from=ckpt hydra.searchpath=[ckpt://RUN]"]
KEYS += ["task.checkpoint=RUN", "checkpoint.init_from=RUN", "++checkpoint.init_from=RUN", "checkpoint.restore=RUN@4"]


@pytest.mark.parametrize("text", KEYS)
def test_a_folder_is_named_by_every_key_that_reads_a_saved_run(text):
    assert Path("/a/run") in named_folders(text.replace("RUN", "/a/run").split())


def test_a_checkpoint_path_may_start_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert Path("/home/me/run") in run_folders(["~/run"])


def test_a_folder_of_runs_named_checkpoints_is_not_a_run(tmp_path, monkeypatch):
    save(tmp_path / "checkpoints" / "mine", composed())
    monkeypatch.chdir(tmp_path)
    assert tmp_path not in run_folders(["checkpoints/mine", "checkpoints"])


@pytest.mark.parametrize("place", ["", "x" * 5000, "\0", "gs://bucket/x"], ids=["nothing", "long", "NUL", "remote"])
def test_an_invalid_checkpoint_path_has_no_run_folder(place):
    assert not [folder for folder in named_folders(["--from", place]) if os.path.exists(folder)]
