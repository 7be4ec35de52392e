"""Any reader detects one flipped bit in any file of a checkpoint, and names the file."""

import errno
import json
import os
import random
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from tiny import tiny_run
from untrained import random_params, save_untrained

from xlstm_hydra import load_checkpoint
from xlstm_hydra.checkpoint import Checkpoints, SaveError, export_checkpoint, read_logged, restore
from xlstm_hydra.cli import metadata as metadata_cli
from xlstm_hydra.configs import CheckpointConfig, ConfigError
from xlstm_hydra.hydra import verifies
from xlstm_hydra.runs import (
    DamagedCheckpoint,
    find_starting_point,
    judge,
    read_metadata_text,
    step_of,
    verification,
    verified_files,
    write_manifest,
)
from xlstm_hydra.step import TrainState

MANIFEST, WRITER = "manifest.json", "xlstm_hydra.checkpoint._integrity.write_manifest"

MODEL = {"gate_soft_cap": 15.0, "logits_soft_cap": 30.0, "lm_head_dtype": None, "proj_factor": 4.0}
"""Model options that Hugging Face supports."""
RUN = tiny_run(model=MODEL, checkpoint=CheckpointConfig(restore="auto"))
OPTIONAL = ("opt_state", "progress", "data")
"""Items that are not read if only the parameters are needed."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 2 and 4, and its parameters."""
    folder = tmp_path_factory.mktemp("saved")
    params = random_params(RUN.model)
    for step in (2, 4):
        save_untrained(RUN, folder, step, params)
    return folder, params


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(saved[0], tmp_path / "run")


def files_of(checkpoint):
    """Files of a checkpoint that are not empty."""
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.stat().st_size)


def listed_in(checkpoint):
    """Files listed in the manifest of a checkpoint."""
    return json.loads((checkpoint / MANIFEST).read_text())["files"]


def flip(file, seed=0):
    """Flip one bit of a file. Returns the original content."""
    content, bits = file.read_bytes(), random.Random(f"{file.name} {seed}")
    changed = bytearray(content)
    changed[bits.randrange(len(changed))] ^= 1 << bits.randrange(8)
    file.write_bytes(changed)
    return content


def each_flipped(checkpoint, *left_out, times=3):
    """Yield the name of every file while one of its bits is flipped."""
    files = [file for file in files_of(checkpoint) if file.relative_to(checkpoint).parts[0] not in left_out]
    assert len(files) > 5
    for file in files:
        for seed in range(times):
            content = flip(file, seed)
            yield file.relative_to(checkpoint).as_posix()
            file.write_bytes(content)


def resume(checkpoint, params):
    """Read everything that a resumed run needs."""
    read_metadata_text(checkpoint)
    target = TrainState(params, {"count": jax.numpy.zeros(())}, jax.numpy.asarray(0), jax.numpy.zeros(()))
    positions = []
    state = restore(checkpoint, target, SimpleNamespace(seek=positions.append))  # pyright: ignore[reportArgumentType]
    return int(state.step), positions, read_logged(checkpoint)


def test_a_resumed_run_detects_a_flipped_bit(run, saved):
    checkpoint = run / "checkpoints" / "4"
    assert resume(checkpoint, saved[1])[:2] == (4, [0])
    for name in each_flipped(checkpoint):
        with pytest.raises(DamagedCheckpoint, match=f"^checkpoint.restore={checkpoint}: {name} is damaged"):
            resume(checkpoint, saved[1])


def test_load_checkpoint_detects_a_flipped_bit_in_the_files_it_reads(run, saved):
    checkpoint = run / "checkpoints" / "4"
    for name in each_flipped(checkpoint, *OPTIONAL, times=1):
        with pytest.raises(DamagedCheckpoint, match=f"^checkpoint={checkpoint}: {name} is damaged"):
            load_checkpoint(f"{run}@4")
    for item in OPTIONAL:
        shutil.rmtree(checkpoint / item)
    jax.tree.map(lambda got, expected: (got == expected).all() or pytest.fail(), load_checkpoint(run)[1], saved[1])


def test_a_flipped_bit_in_a_large_file_is_detected_while_it_is_read(run, monkeypatch):
    monkeypatch.setattr("xlstm_hydra.runs._verify._LARGE", 0)
    for name in each_flipped(run / "checkpoints" / "4", *OPTIONAL, "metadata", "_CHECKPOINT_METADATA", times=1):
        with pytest.raises(DamagedCheckpoint, match=f"{name} is damaged"):
            load_checkpoint(f"{run}@4")


@pytest.fixture
def check(monkeypatch, capsys):
    """Function that runs `xlstm-metadata check --json` and returns its exit status and findings."""

    def run(place):
        monkeypatch.setattr(sys, "argv", ["xlstm-metadata", "check", "--json", str(place)])
        with pytest.raises(SystemExit) as stop:
            metadata_cli.main()
        return stop.value.code, json.loads(capsys.readouterr().out)

    return run


def test_check_detects_a_flipped_bit_and_names_the_file(run, check):
    assert check(run)[0] == 0
    for name in each_flipped(run / "checkpoints" / "2"):
        status, found = check(f"{run}@2")
        assert status == 1 and [each["file"] for each in found["checkpoints"][0]["damage"]] == [name]


def test_check_verifies_every_checkpoint_of_a_run(run, check, monkeypatch):
    flip(run / "checkpoints" / "2" / "params" / "_METADATA")
    monkeypatch.chdir(run.parent)
    status, found = check("run")
    assert "error" not in found["checkpoints"][1]
    assert status == 1 and found["checkpoint"] == str(run / "checkpoints" / "4")
    damage = [[each["file"] for each in one["damage"]] for one in found["checkpoints"]]
    assert damage == [["params/_METADATA"], []]


def test_a_flipped_bit_in_the_metadata_makes_a_run_use_the_checkpoint_before(run):
    assert find_starting_point(RUN, run).checkpoint == run / "checkpoints" / "4"
    for _ in each_flipped(run / "checkpoints" / "4", "params", "opt_state", "progress"):
        start = find_starting_point(RUN, run)
        assert start.checkpoint == run / "checkpoints" / "2"
        assert start.skipped == start.damaged == (run / "checkpoints" / "4",)


def test_export_detects_a_flipped_bit(run, tmp_path):
    checkpoint = run / "checkpoints" / "4"
    for file in (checkpoint / "params" / "_METADATA", *(checkpoint / "params" / "d").iterdir()):
        content = flip(file)
        with pytest.raises(DamagedCheckpoint, match=f"^RUN={checkpoint}: params/.*{file.name} is damaged"):
            export_checkpoint(str(run), tmp_path / "out")
        file.write_bytes(content)
    assert not list(tmp_path.glob("out*"))


def test_a_damaged_step_is_refused_but_a_run_uses_its_last_intact_checkpoint(run):
    flip(run / "checkpoints" / "4" / "data" / "metadata")
    for place, step in (("auto", 2), (str(run), 2), (f"{run}@4", 4)):
        start = find_starting_point(tiny_run(checkpoint=CheckpointConfig(restore=place)), run)
        assert start.checkpoint is not None and step_of(start.checkpoint) == step
        assert start.is_newest is (step == 2)


@pytest.mark.parametrize("item", ["params", "opt_state"])
def test_a_complete_run_also_uses_its_last_intact_checkpoint(run, item):
    complete = replace(RUN, trainer=replace(RUN.trainer, max_steps=4))
    assert find_starting_point(complete, run).is_done(4)
    flip(next(file for file in files_of(run / "checkpoints" / "4" / item) if file.parent.name == "d"))
    start = find_starting_point(complete, run)
    assert start.checkpoint == run / "checkpoints" / "2" and not start.is_done(4)
    assert start.damaged == (run / "checkpoints" / "4",)
    with verification(False):
        assert find_starting_point(complete, run).is_done(4)


def test_a_run_without_an_intact_checkpoint_is_refused_with_the_check_command(run):
    for step in (2, 4):
        flip(run / "checkpoints" / str(step) / "metadata" / "metadata")
    with pytest.raises(ConfigError, match=f"can be read.*`xlstm-metadata check {run}` lists the damaged files"):
        find_starting_point(RUN, run)


def test_verification_can_be_turned_off(run, saved, check):
    flip(run / "checkpoints" / "4" / MANIFEST)
    flip(run / "checkpoints" / "4" / "commit_success.txt")
    assert load_checkpoint(f"{run}@4", verify=False).config == RUN.model
    with verification(False):
        assert find_starting_point(RUN, run).checkpoint == run / "checkpoints" / "4"
    assert verifies(["optimizer.lr=1", "checkpoint.verify=true"]) and not verifies(["++checkpoint.verify=False"])
    assert check(run)[0] == 1


def test_a_checkpoint_without_a_manifest_is_read_with_one_note(run, check, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    checkpoint = run / "checkpoints" / "4"
    (checkpoint / MANIFEST).unlink()
    load_checkpoint(f"{run}@4")
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # the checkpoint was saved with a manifest
    assert "4 has no manifest.json: the save was interrupted" in caplog.text
    assert check(f"{run}@4")[1]["checkpoints"][0]["damage"][0]["file"] == MANIFEST
    file = checkpoint / "_CHECKPOINT_METADATA"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"custom_metadata": {}}))
    caplog.clear()
    load_checkpoint(f"{run}@4")
    assert [record.getMessage() for record in caplog.records] == [
        f"{checkpoint} has no manifest.json, so its files are not verified"
    ]
    status, found = check(f"{run}@4")
    assert status == 0 and found["checkpoints"][0]["notes"][0]["file"] == MANIFEST


@pytest.mark.parametrize("num_deleted", [1, 2])
def test_check_ignores_checkpoints_that_a_run_deletes_meanwhile(run, check, monkeypatch, capsys, num_deleted):
    steps = [run / "checkpoints" / "2", run / "checkpoints" / "4"]

    def judge_late(checkpoint):
        for step in steps[:num_deleted]:
            shutil.rmtree(step, ignore_errors=True)
        return judge(checkpoint)

    monkeypatch.setattr(metadata_cli, "judge", judge_late)
    if num_deleted == 2:
        monkeypatch.setattr(sys, "argv", ["xlstm-metadata", "check", str(run)])
        with pytest.raises(SystemExit) as stop:
            metadata_cli.main()
        assert stop.value.code == 2 and "checkpoints of this run were deleted while" in capsys.readouterr().err
        return
    status, found = check(run)
    assert status == 0 and [each["checkpoint"] for each in found["checkpoints"]] == [str(steps[1])]


CHANGES = {
    "a file is missing": (lambda folder: (folder / "params" / "_METADATA").unlink(), "params/_METADATA", "is missing"),
    "an item is missing": (lambda folder: shutil.rmtree(folder / "data"), "data/metadata", "is missing"),
    "a file is truncated": (lambda folder: (folder / "data" / "metadata").write_text("{"), "data/metadata", "1 bytes"),
    "a file that Orbax may read": (lambda folder: (folder / "params" / "new").touch(), "params/new", "is not listed"),
    "a link out of it": (lambda folder: link(folder / "data" / "metadata"), "data/metadata", "leads out of the check"),
}


def link(file):
    shutil.move(file, file.parents[2] / "elsewhere")
    file.symlink_to(file.parents[2] / "elsewhere")


@pytest.mark.parametrize(("change", "name", "words"), CHANGES.values(), ids=CHANGES)
def test_check_names_other_changes_of_a_checkpoint(run, check, change, name, words):
    change(run / "checkpoints" / "4")
    status, found = check(f"{run}@4")
    assert status == 1
    (problem,) = [each["problem"] for each in found["checkpoints"][0]["damage"] if each["file"] == name]
    assert words in problem


def test_a_pipe_in_place_of_a_file_is_damage(run):
    file = run / "checkpoints" / "4" / "data" / "metadata"
    file.unlink()
    os.mkfifo(file)
    assert judge(run / "checkpoints" / "4").damage == [("data/metadata", "is not a file")]


def test_a_users_file_next_to_the_items_is_not_damage(run, check):
    (run / "checkpoints" / "4" / "notes.txt").touch()
    status, found = check(f"{run}@4")
    assert status == 0
    assert found["checkpoints"][0]["notes"] == [{"file": "notes.txt", "problem": "is not listed in manifest.json"}]


def rewritten(checkpoint, **changes):
    """A manifest with changed fields and a correct digest of its own."""
    import xxhash

    content = json.loads((checkpoint / MANIFEST).read_text())
    content = {key: value for key, value in content.items() if key != "digest"} | changes
    content["digest"] = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    (checkpoint / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


ENTRY = {"size": 1, "digest": "0" * 32}
HOSTILE = {
    "a path above": {"files": {"../../../../etc/passwd": ENTRY}},
    "an absolute path": {"files": {"/etc/passwd": ENTRY}},
    "an empty path": {"files": {"": ENTRY}},
    "a path with an escape sequence": {"files": {"\x1b[31mred": ENTRY}},
    "a negative size": {"files": {"data/metadata": ENTRY | {"size": -1}}},
    "a size that is true": {"files": {"data/metadata": ENTRY | {"size": True}}},
    "a digest of another length": {"files": {"data/metadata": ENTRY | {"digest": "00"}}},
    "another field": {"files": {"data/metadata": ENTRY | {"path": "x"}}},
    "no files": {"files": None},
    "a newer version": {"version": 2},
    "another algorithm": {"algorithm": "md5"},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_with_forbidden_paths_is_refused(run, changes):
    checkpoint = run / "checkpoints" / "4"
    rewritten(checkpoint, **changes)
    with pytest.raises(ConfigError, match=f"{MANIFEST} is (damaged|not supported)") as refused:
        read_metadata_text(checkpoint)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"version": 1}', "\xff"], ids=lambda text: text[:10])
def test_an_invalid_manifest_is_refused(run, text):
    (run / "checkpoints" / "4" / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(DamagedCheckpoint, match=f"{MANIFEST} is damaged: it is not a manifest"):
        read_metadata_text(run / "checkpoints" / "4")


def test_a_manifest_is_written_atomically(run, monkeypatch):
    checkpoint = run / "checkpoints" / "4"
    (checkpoint / MANIFEST).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda number: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_manifest(checkpoint)
    assert not (checkpoint / MANIFEST).exists()
    write_manifest(checkpoint)
    assert read_metadata_text(checkpoint)


@pytest.mark.parametrize("file", ["array_metadatas/process_0", "_sharding"])
def test_without_a_manifest_errors_of_orbax_in_altered_files_are_damage(run, saved, file):
    checkpoint = run / "checkpoints" / "4"
    (checkpoint / MANIFEST).unlink()
    altered = checkpoint / "params" / file
    altered.write_text(altered.read_text().replace("write_shape", "vrite_shape").replace("SingleD", "Singled"))
    with pytest.raises(DamagedCheckpoint, match="its (parameters|training state) cannot be read"):
        resume(checkpoint, saved[1])


def save_in_background(folder, step):
    """Save a step in the background. Returns the open checkpoints."""
    checkpoints, nothing = Checkpoints(folder, CheckpointConfig()), jax.numpy.zeros(())
    state = TrainState({"a": nothing}, {"count": nothing}, jax.numpy.asarray(step), nothing)
    checkpoints.save(state, SimpleNamespace(position=0), {}, None)  # pyright: ignore[reportArgumentType]
    return checkpoints


def test_a_manifest_is_written_in_the_background_and_awaited_at_the_end(tmp_path, monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr(WRITER, lambda checkpoint: may_end.wait() and write_manifest(checkpoint))
    checkpoints = save_in_background(tmp_path, 3)
    checkpoints.check()
    assert not (tmp_path / "checkpoints" / "3" / MANIFEST).exists()
    threading.Timer(0.1, may_end.set).start()
    checkpoints.close()
    manifest = listed_in(tmp_path / "checkpoints" / "3")
    assert {"_CHECKPOINT_METADATA", "params/_METADATA", "data/metadata"} <= manifest.keys()
    assert not [*judge(tmp_path / "checkpoints" / "3").damage]


def test_a_manifest_that_cannot_be_written_is_an_error_of_the_save(tmp_path, monkeypatch):
    def fail(checkpoint):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WRITER, fail)
    with pytest.raises(SaveError, match=f"saving step 3 in {tmp_path}/checkpoints failed: No space left on device"):
        save_in_background(tmp_path, 3).close()


def test_processes_verify_different_files_and_share_the_result(run):
    checkpoint, texts, barrier = run / "checkpoints" / "4", {}, threading.Barrier(3)
    damaged = [file for file in files_of(checkpoint) if file.name != MANIFEST]
    assert len(damaged) == len(listed_in(checkpoint))
    for file in damaged:
        flip(file)

    def process(number):
        def of_all(text):
            texts[number] = json.loads(text)
            barrier.wait()
            return [*map(json.dumps, texts.values())]

        verifying = verified_files(checkpoint, "checkpoint", (), (number, 3), of_all)
        with pytest.raises(DamagedCheckpoint, match=f"and {len(damaged) - 1} more files"), verifying:
            pytest.fail("nothing is read of it")

    with ThreadPoolExecutor(3) as pool:
        [*pool.map(process, range(3))]
    assert all(texts.values()) and len({file for found in texts.values() for file, _ in found}) == len(damaged)
