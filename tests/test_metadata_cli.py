"""The command `xlstm-metadata`: show, compare, check and convert checkpoints."""

import dataclasses
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reference import CHECKPOINTS
from saved import composed, save, save_text
from test_imports import loaded

from xlstm_hydra.cli import metadata as metadata_cli
from xlstm_hydra.metadata import write_metadata
from xlstm_hydra.runs import provenance

MAIN = "from xlstm_hydra.cli.metadata import main; main()"


@pytest.fixture
def told(capsys, monkeypatch):
    """Run the command. Return its exit status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xlstm-metadata", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            metadata_cli.main()
        return (stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def run():
    """A run with a layout, an optimizer and text of its own."""
    return composed("parallel=fsdp", "optimizer=lion", "data=text", "data.path='a b'", "optimizer.lr=3e-4")


@pytest.fixture
def saved(tmp_path, run):
    """Where it saved steps 2 and 4, and another learning rate at 4."""
    parameters = {"a": {"shape": [2, 3], "dtype": "float32"}, "b": {"shape": [4], "dtype": "float32"}}
    extra = provenance(["parallel=fsdp"]) | {"parameters": parameters}
    save_text(tmp_path / "run", json.dumps(write_metadata(run, **extra)), 2)
    save(tmp_path / "run", dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, lr=0.5)), 4)
    return tmp_path / "run"


def test_show_prints_the_config_and_the_environment_as_yaml(told, saved, run):
    status, out, _ = told("show", f"{saved}@2")
    content = yaml.safe_load(out)
    assert status == 0 and content["writer"] == "xlstm_hydra" and content["overrides"] == ["parallel=fsdp"]
    assert content["config"]["optimizer"] == run.optimizer.to_dict()
    assert content["parameters"] == "10 in 2 arrays"


def test_show_prints_the_same_as_json(told, saved):
    assert json.loads(told("show", saved, "--json")[1]) == yaml.safe_load(told("show", saved)[1])


@pytest.mark.parametrize("place", ["{}", "{}@4", "{}/checkpoints/4", "{}/checkpoints/4/metadata/metadata"])
def test_a_source_is_a_run_a_step_a_checkpoint_or_a_file(told, saved, place):
    _, out, _ = told("show", place.format(saved), "--json")
    assert json.loads(out)["config"]["optimizer"]["lr"] == 0.5


def test_an_unknown_field_is_rejected_or_listed(told, tmp_path, run):
    content = write_metadata(run)
    content["config"]["trainer"]["nonsense"] = 1
    place = save_text(tmp_path, json.dumps(content))
    status, out, err = told("show", place)
    assert (status, out) == (2, "") and "nonsense" in err and str(place) in err
    assert any("nonsense" in path for path in json.loads(told("show", place, "--lenient", "--json")[1])["unknown"])


def test_overrides_are_a_command_line_for_a_shell(told, saved, run):
    status, out, err = told("overrides", f"{saved}@2")
    name, *overrides = shlex.split(out)
    assert (status, name, err) == (0, "xlstm-hydra", "")
    assert composed(*overrides) == run
    assert json.loads(told("overrides", f"{saved}@2", "--json")[1])["overrides"] == overrides


def test_differences_are_grouped_by_their_effect(told, saved):
    status, out, _ = told("diff", f"{saved}@2", saved)
    assert (status, out) == (1, "changes numerics\n  optimizer.lr: 0.0003 -> 0.5\n")
    assert told("diff", saved, saved)[:2] == (0, "no differences\n")
    difference = {"key": "optimizer.lr", "kind": "numerics", "before": 0.0003, "after": 0.5}
    assert json.loads(told("diff", f"{saved}@2", saved, "--json")[1])["differences"] == [difference]


def test_a_reference_checkpoint_is_shown_repeated_compared_and_checked(told, saved):
    place = CHECKPOINTS / "d_8dev_mlstm_v0_fsdp2_tp2" / "run"
    if not place.is_dir():
        pytest.skip("the reference data is not there")
    content = json.loads(told("show", place, "--json")[1])
    assert content["writer"] == "xlstm_jax" and content["config"]["parallel"]["model_axis_size"] == 2
    status, out, err = told("overrides", place)
    assert status == 0 and "parallel=fsdp_tp" in out and "# not recorded: data" in err
    status, out, _ = told("diff", saved, place)
    assert status == 1 and "changes the parameters" in out and "only one config has these groups: data" in out
    status, out, _ = told("check", place)
    assert status == 0 and "all parameter shapes on disk match" in out


REFUSED = {
    "no run": (["show", "nowhere"], "RUN='nowhere': no checkpoints in"),
    "no step": (["overrides", "run@3"], "RUN='run@3': no checkpoint of step 3. Saved steps: 2 or 4."),
    "the second": (["diff", "run", "nowhere"], "B='nowhere': no checkpoints in"),
    "no metadata": (["show", "empty.json"], "RUN=empty.json: not JSON"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_an_unreadable_source_gives_one_message(told, saved, monkeypatch, arguments, words):
    monkeypatch.chdir(saved.parent)
    Path("empty.json").write_text("")
    status, out, err = told(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"xlstm-metadata: {words}") and err.count("\n") == 1


def test_a_checkpoint_without_parameters_gives_one_message(told, saved):
    status, _, err = told("check", f"{saved}@4")
    place = saved / "checkpoints" / "4"
    assert status == 2 and err.count("\n") == 1 and "The checkpoint may be incomplete; choose another step." in err
    assert err.startswith(f"xlstm-metadata: RUN={place}: its parameters cannot be read: ")


def test_wrong_shapes_are_reported_with_the_expected_ones(told, tmp_path):
    import numpy as np
    import orbax.checkpoint as ocp

    place = save(tmp_path, composed("model.num_blocks=1", "model.embedding_dim=16"))
    with ocp.StandardCheckpointer() as writer:
        writer.save(place / "checkpoints" / "20" / "params", {"token_embedding": {"embedding": np.ones((256, 8))}})
    status, out, _ = told("check", place)
    assert status == 1
    assert "token_embedding.embedding: expected (256, 16) according to the model, found (256, 8)\n" in out
    assert "lm_head.out_dense.kernel: expected (16, 256) according to the model, found no array\n" in out
    misfits = json.loads(told("check", place, "--json")[1])["misfits"]
    assert {"leaf": "token_embedding.embedding", "expected": [256, 16], "found": [256, 8], "source": "model"} in misfits


@pytest.mark.parametrize("arguments", [["show"], ["overrides"], ["diff", "run@2"]], ids=" ".join)
def test_reading_metadata_does_not_load_jax(saved, arguments):
    code = f"import sys\nsys.argv = {['xlstm-metadata', *arguments, 'run']}\n{MAIN}"
    heavy, text = loaded(code, saved.parent)
    assert heavy == set() and "lr" in text


@pytest.mark.parametrize(("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["yes", "no"])
def test_a_terminal_gets_colors_unless_no_color_is_set(saved, environment, colored):
    main, terminal = pty.openpty()
    command = [sys.executable, "-c", MAIN, "diff", f"{saved}@2", str(saved)]
    clean = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color"}
    subprocess.run(command, env=clean | environment, stdout=terminal, check=False)
    text = os.read(main, 10_000).decode()
    assert ("\x1b[" in text) is colored and "optimizer.lr" in text


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the reference checkpoints are not on this machine")
def test_import_and_export_write_checkpoints(told, tmp_path):
    theirs = CHECKPOINTS / "b_mlstm_v1" / "run"
    assert told("import", theirs, tmp_path / "ours", "--format", "xlstm_jax")[:2] == (
        0,
        f"written: {tmp_path / 'ours' / 'checkpoints' / '20'}\n",
    )
    assert told("check", tmp_path / "ours")[0] == 0
    status, out, _ = told("show", tmp_path / "ours", "--json")
    assert status == 0 and json.loads(out)["imported"].keys() == {"checkpoint", "writer", "notes"}
    assert told("export", "--format", "hf", tmp_path / "ours", tmp_path / "hf")[0] == 0
    status, out, _ = told("import", tmp_path / "hf", tmp_path / "back", "--json")
    assert json.loads(out) == {"written": str(tmp_path / "back" / "checkpoints" / "0")}
    status, _, words = told("export", "--format", "hf", CHECKPOINTS / "a_mlstm_v0" / "run", tmp_path / "v0")
    assert status == 2 and "Hugging Face's xLSTM does not have this model class" in words
