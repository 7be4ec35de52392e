"""`resume=RUN` is the saved config with new overrides, in the same folder, from the saved step."""

import shutil
from pathlib import Path

import pytest
from command import run_command
from published import tree, with_none_strings
from saved import composed, save, save_text

import xlstm_hydra.train

TYPED = ("model.embedding_dim=64", "optimizer=lion", "trainer.max_steps=50", "data=synthetic")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Runs that were started, with their folders. `run` has two checkpoints, `theirs` has one of xlstm-jax."""
    monkeypatch.chdir(tmp_path)
    found = []
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: found.append((run, Path(folder))))
    for step in (20, 30):
        save(tmp_path / "run", composed(*TYPED), step)
    save_text(tmp_path / "theirs", with_none_strings(tree("mlstm_v1")))
    (tmp_path / "run" / ".hydra").mkdir()
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text("the first ones")
    return found


def test_a_run_continues_in_its_folder_with_its_config_and_new_overrides(started, tmp_path):
    assert run_command("resume=run", "trainer.max_steps=90", "parallel=tp").status == 0
    ((run, folder),) = started
    assert folder == tmp_path / "run"
    assert run.checkpoint.restore == str(tmp_path / "run")  # at its last intact checkpoint
    assert (run.model.model_config.embedding_dim, run.optimizer.name, run.data.name) == (64, "lion", "synthetic")
    assert run.trainer.max_steps == 90 and run.parallel.model_axis_size == -1
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text() == "the first ones"
    assert (tmp_path / "run" / ".hydra" / "resumed_at_30" / "overrides.yaml").exists()


def test_an_earlier_step_continues_in_another_folder(started, tmp_path):
    assert run_command("resume='run@20'", "hydra.run.dir=again").status == 0
    ((run, folder),) = started
    assert folder == tmp_path / "again" and run.checkpoint.restore.endswith("checkpoints/20")
    assert (tmp_path / "again" / ".hydra" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("place", "restored"),
    [
        ("run/checkpoints", "run"),
        ("run/checkpoints/latest", "run/checkpoints/30"),
        ("run@latest", "run/checkpoints/30"),
        ("latest_of_all", "run/checkpoints/30"),
    ],
)
def test_a_run_can_be_given_by_its_checkpoints_folder_or_a_link(started, tmp_path, place, restored):
    (tmp_path / "run" / "checkpoints" / "latest").symlink_to("30")
    (tmp_path / "latest_of_all").symlink_to("run/checkpoints/30")
    assert run_command(f"resume={place}").status == 0
    ((run, folder),) = started
    assert folder == tmp_path / "run" and run.checkpoint.restore == str(tmp_path / restored)


def test_a_copy_of_a_checkpoint_continues_in_the_given_folder(started, tmp_path):
    shutil.copytree(tmp_path / "run" / "checkpoints" / "30", tmp_path / "30")
    done = run_command("resume=30")
    assert done.status == 2 and "30 is not inside a run folder" in done.err and "hydra.run.dir=DIR" in done.err
    assert run_command("resume=30", "hydra.run.dir=again").status == 0
    ((run, folder),) = started
    assert folder == tmp_path / "again" and run.checkpoint.restore == str(tmp_path / "30")


REFUSED = {
    "no run": (["resume=nope"], r"resume='nope': no checkpoints in"),
    "no step": (["resume=run@7"], "no checkpoint of step 7. Saved steps: 20 or 30"),
    "nothing": (["resume="], "resume: requires a run folder. For example resume=outputs/my_run@200"),
    "twice": (["resume=run", "resume=run@20"], "resume: given more than once"),
    "and --from": (["resume=run", "--from", "run"], "resume and --from: cannot be given together"),
    "and restore": (
        ["resume=run", "checkpoint.restore=run"],
        "resume and checkpoint.restore: cannot be given together",
    ),
    "later steps": (["resume=run@20"], r"already has checkpoints of later steps \(30\), which would be"),
    "wrong override": (["resume=run", "trainer.max_step=90"], "Did you mean trainer.max_steps?"),
    "of another program": (["resume=theirs"], "saved by xlstm_jax"),
}


@pytest.mark.parametrize(("typed", "words"), REFUSED.values(), ids=REFUSED)
def test_a_run_that_cannot_continue_gives_one_message(started, typed, words):
    done = run_command(*typed)
    assert done.status == 2 and not started
    assert words.replace("\\", "") in done.err
    assert "Traceback" not in done.err
