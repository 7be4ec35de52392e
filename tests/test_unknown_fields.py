"""Unknown fields in metadata: null has no effect, and `--lenient` ignores other values."""

import dataclasses
import json
import sys

import pytest
from command import run_command
from published import CELL, changed, nested, tree
from saved import composed, save_text

import xlstm_hydra.train
from xlstm_hydra.checkpoint import load_checkpoint
from xlstm_hydra.cli import metadata as metadata_cli
from xlstm_hydra.configs import CheckpointConfig, ConfigError, ModelConfig, resolve_classes
from xlstm_hydra.hydra import SavedOptions
from xlstm_hydra.metadata import read_record, write_metadata
from xlstm_hydra.runs import find_checkpoint, record_of

NEW = f"{CELL}.igate_preact_fixed_to"
IGNORED = "ignored unknown fields: "


@pytest.fixture(scope="module")
def run():
    """A run of ours."""
    return composed("trainer.max_steps=30", "data=synthetic")


@pytest.fixture
def places(tmp_path, monkeypatch, run):
    """Records of xlstm-jax with a newer field, one of them null, and one of ours with both."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("null", None), ("newer", 2.0)):
        save_text(tmp_path / name, nested(tree("mlstm_v1", {NEW: value, "trainer.mood": value})))
    content = changed(write_metadata(run), {"config.optimizer.shiny": 1, "config.trainer.dull": None})
    save_text(tmp_path / "ours", json.dumps(content))
    return tmp_path


def record_at(place, **settings):
    return record_of(find_checkpoint(str(place)), "RUN", **settings)


@pytest.mark.parametrize("value", [None, "None"])
@pytest.mark.parametrize("path", [NEW, "model.parallel.colour", "optimizer.colour", "trainer.logger.colour", "colour"])
def test_an_unknown_field_that_is_null_is_ignored_with_a_note(path, value):
    record, plain = (read_record(nested(tree("mlstm_v1", change))) for change in ({path: value}, {}))
    assert record.groups == plain.groups and record.unset == (path,) and not record.unknown
    note = f"{path}=null: unknown field; null has no effect"
    assert set(record.notes) - set(plain.notes) == {note}


def test_null_fields_are_logged_once_in_one_line_each(places, caplog):
    for _ in range(2):
        record_at(places / "null")
    assert [line.count(name) for line, name in zip(caplog.messages, (NEW, "trainer.mood"), strict=True)] == [1, 1]
    ModelConfig.from_metadata(nested(tree("mlstm_v1", {f"{CELL}.of_from_metadata": None})))
    assert "of_from_metadata=null" in caplog.messages[2] and len(caplog.messages) == 3


def test_a_null_field_in_a_record_of_ours_has_no_effect_either(run):
    content = changed(write_metadata(run), {"config.trainer.dull": None, "mood": None})
    record = read_record(json.dumps(content))
    assert record.groups == run.groups() and record.unset == ("mood", "config.trainer.dull")


COMMANDS = {
    "show": ["show", "newer"],
    "overrides": ["overrides", "newer"],
    "diff": ["diff", "null", "newer"],
    "check": ["check", "newer"],
    "import": ["import", "newer", "out"],
    "export": ["export", "newer", "out", "--format", "hf"],
    "of a file": ["show", "newer/checkpoints/20/metadata/metadata"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_every_command_that_reads_a_record_may_be_lenient(places, monkeypatch, capsys, caplog, arguments):
    def printed(*more):
        monkeypatch.setattr(sys, "argv", ["xlstm-metadata", *arguments, *more])
        with pytest.raises(SystemExit) as stop:
            metadata_cli.main()
        return stop.value.code, capsys.readouterr().err

    status, err = printed()
    assert status == 2 and f"{NEW}: no such field" in err and err.count("--lenient ignores unknown fields.") == 1
    assert IGNORED not in caplog.text
    _, err = printed("--lenient")
    assert "no such field" not in err and f"{IGNORED}{NEW}, trainer.mood" in caplog.text


TYPED = {
    "new run": (["--from", "newer", "--lenient"], NEW),
    "flag in front": (["--lenient", "--from=newer"], NEW),
    "resumed": (["resume=ours", "--lenient"], "config.optimizer.shiny"),
    "search path": (["hydra.searchpath=['ckpt://newer?lenient']", "model=ckpt"], NEW),
}


@pytest.mark.parametrize(("arguments", "field"), TYPED.values(), ids=TYPED)
def test_a_run_from_a_record_may_be_lenient(places, caplog, arguments, field):
    strict = [text.replace("?lenient", "") for text in arguments if text != "--lenient"]
    done = run_command("--cfg", "job", *strict)
    assert done.status == 2 and f"{field}: no such field" in done.err and "lenient ignores unknown fields." in done.err
    done = run_command("--cfg", "job", *arguments)
    assert done.status == 0 and caplog.text.count(f"{IGNORED}{field}") == 1


def test_a_lenient_checkpoint_source_reads_leniently(places):
    saved = SavedOptions("newer", "--from", lenient=True)
    assert SavedOptions.at(saved.address.removeprefix("ckpt://"), "hydra.searchpath").checkpoint == saved.checkpoint
    with pytest.raises(ConfigError, match=r"ckpt://RUN\?lenient ignores unknown fields"):
        SavedOptions.at(saved.address.removeprefix("ckpt://").removesuffix("?lenient"), "hydra.searchpath")


@pytest.mark.parametrize("argument", ["resume=ours", "checkpoint.restore=ours"])
def test_a_run_that_continues_leniently_is_started_so(places, monkeypatch, argument):
    found = []
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: found.append(run))
    done = run_command(argument, "--lenient", "data=synthetic")
    assert done.status == 0, done.err
    assert found[0].checkpoint.lenient


def test_a_run_continues_from_a_record_with_unknown_fields_if_it_is_lenient(places, run):

    def resumed(lenient):
        settings = CheckpointConfig(restore="ours", lenient=lenient)
        trainer, model = dataclasses.replace(run.trainer, max_steps=40), resolve_classes(run.model)
        continued = dataclasses.replace(run, model=model, checkpoint=settings, trainer=trainer)
        return xlstm_hydra.train.read_resumed(continued, find_checkpoint("ours"))

    with pytest.raises(ConfigError, match="optimizer.shiny: no such .* checkpoint.lenient=true ignores unknown fields"):
        resumed(False)
    assert resumed(True).record.unknown == ("config.optimizer.shiny",)


def test_a_new_run_from_one_that_was_lenient_is_strict(places, run):
    lenient = dataclasses.replace(run, checkpoint=CheckpointConfig(restore="ours", lenient=True))
    save_text(places / "continued", json.dumps(write_metadata(lenient)))
    assert "lenient: false" in run_command("--from", "continued", "--cfg", "job", "-p", "checkpoint").out


ALONE = {
    "alone": (["--lenient"], "--lenient: only applies to commands that read a saved run. Add --from RUN"),
    "without effect": (["checkpoint.lenient=true"], "checkpoint.lenient=true, checkpoint.restore=null: has no effect"),
}


@pytest.mark.parametrize(("arguments", "words"), ALONE.values(), ids=ALONE)
def test_lenient_without_a_record_is_refused(places, arguments, words):
    done = run_command(*arguments)
    assert done.status == 2 and words in done.err


def test_in_python_a_checkpoint_is_read_leniently_by_an_argument(places, caplog):
    with pytest.raises(ConfigError, match="lenient=True ignores unknown fields"):
        load_checkpoint("newer")
    with pytest.raises(ConfigError, match="its parameters cannot be read"):
        load_checkpoint("newer", lenient=True)
    assert f"{IGNORED}{NEW}, trainer.mood" in caplog.text
