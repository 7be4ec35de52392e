"""The promises of SECURITY.md: the content of a run folder, checkpoint, sweep folder or git repository that someone
else has made is never run, imported, resolved, or used as a path that leads out of that folder."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import run_command
from saved import composed, save, save_text

import xlstm_hydra.train
from xlstm_hydra.cli import metadata as metadata_cli
from xlstm_hydra.configs import CheckpointConfig, ConfigError
from xlstm_hydra.metadata import MetadataError, read_record, write_metadata
from xlstm_hydra.runs import RunFolder, find_checkpoint, provenance, read_metadata_text, recorded_origin
from xlstm_hydra.sweep import FAILED, Outcome, update_record
from xlstm_hydra.train import train

pytestmark = pytest.mark.usefixtures("logging_of_the_tests")

SECRET = "value-of-a-variable-of-this-machine"


@pytest.fixture(autouse=True)
def trained(tmp_path, monkeypatch):
    """The runs that were started. Nothing is trained, and no program is started."""
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: found.append(run))
    monkeypatch.setattr(xlstm_hydra.train, "read_resumed", lambda *_: None)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"{command} was run"))
    return found


@functools.cache
def composed_once():
    """The default run."""
    return composed()


def content(folder):
    """Every folder, file and link in a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        found[path] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


# ---- strings of a record


HOSTILE = {
    "an interpolation": "${oc.env:SECRET}",
    "a nested interpolation": "${oc.select:${oc.env:SECRET},${oc.env:SECRET}}",
    "an escaped interpolation": r"\\${oc.env:SECRET}",
    "a path": "../../x",
    "an absolute path": "/etc/passwd",
    "shell metacharacters": "$(touch x)`touch x`;touch x&|'\"\\ *~ #{}",
    "an override": "x +hydra.callbacks.a._target_=os.system",
    "a line break": "x\nhydra.run.dir=y",
    "an escape sequence": "x\x1b]0;y\x07\u202e\u00e9'z",
    "a call": {"_target_": "os.system", "_args_": ["touch x"]},
    "a partial call": {"_target_": "os.system", "_partial_": True},
}


def leaves(node, path=()):
    """Paths of all strings and nulls."""
    if isinstance(node, dict | list):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(item, (*path, key))
    elif node is None or isinstance(node, str):
        yield path


def with_value(record, path, value):
    """The record with another value at a path."""
    changed = node = copy.deepcopy(record)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@pytest.fixture(scope="module")
def record():
    """What a run of ours records, with every kind of text in it."""
    run = composed("data=text", "data.path=corpus", "trainer.compilation_cache_dir=cache", "checkpoint.init_from=a")
    made = provenance(["optimizer.lr=1"]) | {"git": {"commit": "abc", "dirty": False}, "argv": ["optimizer.lr=1"]}
    return json.loads(json.dumps(write_metadata(run, **made, corpus="abc", history=[])))


_HOSTILE_RECORDS = {}


def hostile_record(record, value):
    """Return the record with the same value in every string that may hold it. In the others, it is refused."""
    allowed = []
    for path in leaves(record):
        try:
            read_record(json.dumps(with_value(record, path, value)))
            allowed.append(path)
        except MetadataError as error:
            assert SECRET not in str(error)
    texts = [path for path in allowed if path[0] == "config"]
    assert len(texts) >= 4 if isinstance(value, str) else not texts
    for path in allowed:
        record = with_value(record, path, value)
    return record


def save_hostile(record, value):
    """Save `hostile_record`, made once for each value, in a run folder."""
    if (key := repr(value)) not in _HOSTILE_RECORDS:
        _HOSTILE_RECORDS[key] = json.dumps(hostile_record(record, value))
    return save_text(Path("run").absolute(), _HOSTILE_RECORDS[key])


@pytest.fixture(params=HOSTILE.values(), ids=[*HOSTILE])
def hostile(request, record):
    """See `save_hostile`."""
    return save_hostile(record, request.param)


ENTRIES = {
    "--from": ["--from", "run", "hydra.run.dir=new"],
    "resume": ["resume=run", "trainer.max_steps=99"],
}
OTHER_ENTRIES = {
    "ckpt": ["hydra.searchpath=[ckpt://run]", "+from=ckpt", "hydra.run.dir=new"],
    "resume elsewhere": ["resume=run", "trainer.max_steps=99", "hydra.run.dir=new"],
    "a sweep": ["-m", "--from", "run", "optimizer.lr=1e-3", "hydra.sweep.dir=new", "hydra/launcher=basic"],
    "shown": ["--from", "run", "--cfg", "job", "--resolve"],
}


@pytest.mark.parametrize("entry", OTHER_ENTRIES.values(), ids=OTHER_ENTRIES)
def test_an_interpolation_in_a_record_is_not_resolved_by_the_other_ways_to_use_it(entry, record, tmp_path):
    save_hostile(record, HOSTILE["an interpolation"])
    done = run_command(*entry)
    assert SECRET not in done.out + done.err and (done.status == 0 or "matches no parameter" in done.err), done.err
    assert not any(SECRET.encode() in text for text in content(tmp_path).values() if isinstance(text, bytes))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_what_a_record_says_arrives_as_it_is_written_or_is_refused(entry, hostile, trained, tmp_path):
    path = json.loads(read_metadata_text(hostile / "checkpoints" / "20"))["config"]["data"]["path"]
    done = run_command(*entry)
    assert SECRET not in done.out + done.err and "Traceback" not in done.err
    assert [run.data.path for run in trained] == ([path] if done.status == 0 else [])
    assert done.status == 0 or (done.status == 2 and done.err.startswith("xlstm-hydra: ")), done.err
    assert not (tmp_path / "x").exists() and not (tmp_path.parents[1] / "x").exists()
    assert not any(SECRET.encode() in text for text in content(tmp_path).values() if isinstance(text, bytes))


COMMANDS = {
    "show": ["show", "run"],
    "show, as JSON": ["show", "run", "--json"],
    "overrides": ["overrides", "run"],
    "overrides, as JSON": ["overrides", "run", "--json"],
    "diff": ["diff", "run", "plain"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_a_record_says_is_shown_as_it_is_written(command, hostile, record, monkeypatch, capsys):
    save_text(Path("plain").absolute(), json.dumps(record))
    before = content(".")
    monkeypatch.setattr(sys, "argv", ["xlstm-metadata", *command])
    with pytest.raises(SystemExit) as stop:
        metadata_cli.main()
    printed = capsys.readouterr()
    assert stop.value.code in (0, 1, 2) and SECRET not in printed.out + printed.err
    assert "Traceback" not in printed.err and content(".") == before


def test_a_command_line_that_is_printed_gives_the_same_config_and_runs_nothing_in_a_shell(hostile, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["xlstm-metadata", "overrides", "run"])
    with pytest.raises(SystemExit):
        metadata_cli.main()
    line = capsys.readouterr().out.strip()
    assert line.isprintable()
    typed = f"set -- {line.removeprefix('xlstm-hydra ')}\nprintf '%s\\0' \"$@\""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("there is no bash")
    done = subprocess.run([shell, "-c", typed], capture_output=True)
    recorded = read_record(read_metadata_text(hostile / "checkpoints" / "20")).groups["data"]
    run = composed(*done.stdout.decode().split("\0")[:-1])
    assert done.returncode == 0 and run.data == recorded and not Path("x").exists()


def test_the_origin_in_a_config_file_is_not_resolved(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {_checkpoint_: '${oc.env:SECRET}'}\n")
    assert recorded_origin(tmp_path) == "${oc.env:SECRET}"


# ---- paths that a record names


@pytest.mark.parametrize("entry", [ENTRIES["--from"], ENTRIES["resume"]], ids=["--from", "resume"])
def test_recorded_paths_of_compiled_programs_and_weights_are_dropped_with_a_note(entry, record, trained):
    save_text(Path("run").absolute(), json.dumps(record))
    done = run_command(*entry)
    [run] = trained
    assert (done.status, run.trainer.compilation_cache_dir, run.checkpoint.init_from) == (0, "auto", None)
    place = f"xlstm-hydra: {entry[0].partition('=')[0]} run: "
    rule = "is reset to auto: compiled programs are not loaded from a recorded folder"
    assert f"{place}trainer.compilation_cache_dir='cache' {rule}\n" in done.err
    assert f"{place}checkpoint.init_from='a' is ignored: weights are not read from a recorded path" in done.err


def test_a_recorded_path_may_be_typed_again(record, trained):
    save_text(Path("run").absolute(), json.dumps(record))
    typed = ["trainer.compilation_cache_dir=cache", "checkpoint.init_from=a"]
    assert run_command("--from", "run", "hydra.run.dir=new", *typed).status == 0
    assert (trained[0].trainer.compilation_cache_dir, trained[0].checkpoint.init_from) == ("cache", "a")


def test_a_recorded_null_still_keeps_no_compiled_programs(trained):
    save(Path("run").absolute(), composed("trainer.compilation_cache_dir=null"))
    assert run_command("--from", "run", "hydra.run.dir=new").err == ""
    assert trained[0].trainer.compilation_cache_dir is None


# ---- links in a run folder


@pytest.fixture
def elsewhere(tmp_path):
    """Files and folders of the user's that no run folder may change, each under the name of what a link replaces."""
    folder = tmp_path / "elsewhere"
    save(folder / "run", composed_once())
    shutil.copytree(folder / "run" / "checkpoints" / "20", folder / "params")
    (folder / "file").write_text("mine")
    return folder


FILES = [name for name in RunFolder.WRITTEN if "." in name[1:] or name == ".lock"]
FOLDERS = [name for name in RunFolder.WRITTEN if name not in FILES]
BELOW = [".hydra/config.yaml", ".hydra/resumed_at_20", "checkpoints/deleted", "checkpoints/20", "checkpoints/19"]
BELOW += ["checkpoints/20/params", "checkpoints/20/metadata/metadata", "checkpoints/21.orbax-checkpoint-tmp-1"]
BELOW += ["damaged_checkpoints/20_1", "tensorboard/events"]
TARGETS = {"a file": "elsewhere/file", "a folder": "elsewhere/run/checkpoints", "nothing": "elsewhere/new"}


def link(path, target):
    """Put a link in the place of whatever is there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


CASES = [(name, TARGETS["a file" if name in FILES else "a folder"]) for name in [*FILES, *FOLDERS, *BELOW]]
CASES += [(name, target) for name in ("config.yaml", "checkpoints/deleted") for target in TARGETS.values()]


@pytest.mark.parametrize(("name", "target"), dict.fromkeys(CASES))
def test_a_run_folder_is_not_held_if_a_link_leads_out_of_it(name, target, elsewhere, tmp_path):
    save(tmp_path / "run", composed_once(), step=20)
    link(tmp_path / "run" / name, tmp_path / target)
    before = content(".")
    words = (
        f"^hydra.run.dir='.*run/{name} is a link to '?{tmp_path / target}'?, which leads out of the folder.* Choose "
    )
    with pytest.raises(ConfigError, match=words), RunFolder(tmp_path / "run").held([], lambda: True):
        pytest.fail("it was held")
    assert content(".") == before


@pytest.mark.parametrize("name", [".lock", "config.yaml", "xlstm-hydra.log", ".hydra/config.yaml", "checkpoints"])
def test_a_run_does_not_start_where_a_link_leads_out_of_its_folder(name, elsewhere, trained, tmp_path):
    save(tmp_path / "run", composed_once(), step=20)
    link(tmp_path / "run" / name, elsewhere / "file")
    before = content(".")
    done = run_command("hydra.run.dir=run", "checkpoint.restore=auto", quiet=False)
    assert (done.status, trained, content(".")) == (2, [], before)
    assert f"run/{name} is a link to {elsewhere / 'file'}, which leads out of the folder" in done.err
    assert done.err.count("\n") == 1 and "Choose another folder with hydra.run.dir=DIR." in done.err


@pytest.mark.parametrize("name", [".lock", "xlstm-hydra.log", "checkpoints/deleted", "checkpoints", "checkpoints/20"])
def test_a_run_is_not_resumed_where_a_link_leads_out_of_its_folder(name, elsewhere, trained, tmp_path):
    save(tmp_path / "run", composed_once(), step=20)
    target = elsewhere / ("run/checkpoints/20" if name == "checkpoints/20" else "run/checkpoints")
    link(tmp_path / "run" / name, os.path.relpath(target, (tmp_path / "run" / name).parent))
    before = content(".")
    done = run_command("resume=run", "trainer.max_steps=99", quiet=False)
    assert (done.status, trained, content(".")) == (2, [], before)
    assert done.err.startswith("xlstm-hydra: resume='run': "), done.err
    assert f"run/{name} is a link to ../" in done.err and done.err.count("\n") == 1
    is_read = name in ("checkpoints", "checkpoints/20")
    assert ("resume=run hydra.run.dir=DIR continues the run" in done.err) == (not is_read)


@pytest.mark.parametrize("make", [os.mkfifo], ids=["a pipe"])
@pytest.mark.parametrize("name", [".lock", "config.yaml", "metrics.csv", "checkpoints/20/data"])
def test_a_run_does_not_wait_for_a_pipe_or_device(name, make, trained, tmp_path):
    save(tmp_path / "run", composed_once(), step=20)
    make(tmp_path / "run" / name)
    done = run_command("hydra.run.dir=run", quiet=False)
    assert (done.status, trained) == (2, []) and f"run/{name} is a pipe, a socket or a device" in done.err


def test_links_that_stay_in_the_folder_and_a_folder_that_is_a_link_are_fine(trained, tmp_path):
    save(tmp_path / "disk" / "run", composed_once(), step=20)
    (tmp_path / "outputs").symlink_to("disk")
    for name, target in {"checkpoints/latest": "20", "log": "xlstm-hydra.log", "checkpoints/absolute": "20"}.items():
        place = target if name != "checkpoints/absolute" else tmp_path / "disk" / "run" / "checkpoints" / target
        (tmp_path / "disk" / "run" / name).symlink_to(place)
    done = run_command("resume=outputs/run", "trainer.max_steps=99", quiet=False)
    assert (done.status, len(trained)) == (0, 1), done.err
    (tmp_path / "linked").symlink_to("disk/run")
    assert run_command("resume=linked@latest", "trainer.max_steps=99", quiet=False).status == 0


def test_other_links_of_the_user_are_fine_where_the_run_folder_is_the_current_one(elsewhere, trained, tmp_path):
    (tmp_path / "data").symlink_to(elsewhere)
    assert run_command("hydra.run.dir=.", quiet=False).status == 0


def test_a_link_that_appears_later_is_replaced_and_not_followed(elsewhere, monkeypatch, tmp_path):
    from xlstm_hydra.runs import open_lock, replace_file

    (tmp_path / "plan.json").symlink_to("elsewhere/file")
    with pytest.raises(OSError):
        open_lock(tmp_path / "plan.json")
    replace_file(tmp_path / "plan.json", "new")
    assert (tmp_path / "plan.json").read_text() == "new" and (elsewhere / "file").read_text() == "mine"


# ---- links in a checkpoint that is read


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/20", *BELOW[5:7]])
@pytest.mark.parametrize("place", ["run", "run@20", "run/checkpoints", "run/checkpoints/20"])
def test_a_checkpoint_is_not_read_through_a_link_that_leads_out_of_its_run(name, place, elsewhere, tmp_path):
    save(tmp_path / "run", composed_once(), step=20)
    target = {"checkpoints": "run/checkpoints", "checkpoints/20": "run/checkpoints/20"}.get(name, "params")
    target = "run/checkpoints/20/metadata/metadata" if name.endswith("metadata") else target
    link(tmp_path / "run" / name, elsewhere / target)
    with pytest.raises(ConfigError, match=rf"{name} is a link to {elsewhere}.*which leads out of the folder") as error:
        find_checkpoint(place, "RUN")
    assert "Copy the target, or give its folder instead." in str(error.value)


def test_a_link_beside_the_checkpoint_that_is_read_does_not_matter(elsewhere, tmp_path):
    save(tmp_path / "run", composed_once(), step=20)
    link(tmp_path / "run" / "checkpoints" / "deleted", elsewhere / "run")
    assert find_checkpoint("run", "RUN") == tmp_path / "run" / "checkpoints" / "20"


def test_the_other_steps_of_a_run_are_not_read_through_links_either(elsewhere, tmp_path):
    save(tmp_path / "run", composed_once(), step=20)
    (tmp_path / "run" / "checkpoints" / "10").symlink_to(elsewhere / "run" / "checkpoints" / "20")
    done = run_command("--from", "run", "from=ckpt@10", "hydra.run.dir=new")
    assert done.status == 2 and "checkpoints/10 is a link to" in done.err, done.err


# ---- the same from Python (these load JAX)


@pytest.mark.parametrize("name", [".lock", "metadata.json", "tensorboard", "checkpoints", "checkpoints/deleted"])
def test_training_from_python_does_not_write_through_links_either(name, elsewhere, tmp_path):
    link(tmp_path / "run" / name, elsewhere / "run" / "checkpoints")
    before = content(".")
    with pytest.raises(
        ConfigError, match=f"run/{name} is a link to {elsewhere}/run/checkpoints, which leads out of the"
    ):
        train(composed_once(), tmp_path / "run")
    assert content(".") == before


def test_no_checkpoint_is_deleted_through_a_link(elsewhere, tmp_path):
    from xlstm_hydra.checkpoint import Checkpoints

    save(tmp_path / "run", composed_once(), step=20)
    link(tmp_path / "run" / "checkpoints" / "deleted", elsewhere / "run" / "checkpoints")
    before = content(".")
    with pytest.raises(ConfigError, match="deleted is a link to .*, which leads out of the folder"):
        Checkpoints(tmp_path / "run", CheckpointConfig())
    assert content(".") == before
    link(tmp_path / "run" / "checkpoints" / "deleted", "../kept")
    save(tmp_path / "run" / "kept", composed_once(), step=1)
    Checkpoints(tmp_path / "run", CheckpointConfig()).close()
    assert (tmp_path / "run" / "kept" / "checkpoints" / "1").is_dir()


def test_a_model_of_hugging_face_may_have_links_into_its_own_cache_alone(elsewhere, tmp_path):
    from xlstm_hydra.checkpoint import find_weights

    folder = tmp_path / "models--a" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "models--a" / "blobs").mkdir()
    (tmp_path / "models--a" / "blobs" / "file").write_text("{}")
    link(folder / "model.safetensors", "../../blobs/file")
    assert find_weights(str(folder), "checkpoint") == folder
    link(folder / "model.safetensors", elsewhere / "file")
    with pytest.raises(ConfigError, match=f"model.safetensors is a link to {elsewhere}/file, which leads out of the"):
        find_weights(str(folder), "checkpoint")


# ---- links in the folder of a sweep


@pytest.fixture
def swept(tmp_path):
    """The folder of a sweep of two jobs that failed."""
    for job in (0, 1):
        (tmp_path / "sweep" / str(job)).mkdir(parents=True)
    jobs = [Outcome(job=job, overrides=[f"trainer.seed={job}"], status=FAILED, folder=str(job)) for job in (0, 1)]
    update_record(tmp_path / "sweep", jobs)
    command = [{"arguments": ["-m", "trainer.seed=0,1"], "cwd": str(tmp_path)}]
    (tmp_path / "sweep" / "command.json").write_text(json.dumps(command))
    return tmp_path / "sweep"


IN_A_SWEEP = ["0", "1/.hydra", "1/config.yaml", "1/checkpoints", "sweep.csv", "multirun.yaml", "other"]


AGAIN = {"resume_sweep": ["resume_sweep=sweep"]}
AGAIN |= {"-m": ["-m", "trainer.seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweeper.resume=true"]}


@pytest.mark.parametrize(("name", "again"), [*((name, "resume_sweep") for name in IN_A_SWEEP), ("1/.hydra", "-m")])
def test_a_sweep_is_not_resumed_if_a_link_leads_out_of_its_folder(name, again, swept, elsewhere, trained):
    link(swept / name, elsewhere / "run")
    before = content(".")
    done = run_command(*AGAIN[again], quiet=False)
    assert (done.status, trained, content(".")) == (2, [], before)
    assert f"sweep/{name} is a link to {elsewhere / 'run'}, which leads out of the folder" in done.err


@pytest.mark.parametrize("folder", ["../../x", "/etc", ".."])
def test_a_sweep_is_not_resumed_if_the_recorded_folder_of_a_job_is_elsewhere(folder, swept, trained):
    lines = [json.loads(line) for line in (swept / "sweep.jsonl").read_text().splitlines()]
    lines[1]["folder"] = folder
    (swept / "sweep.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = run_command("resume_sweep=sweep", quiet=False)
    assert (done.status, trained) == (2, [])
    assert f"the recorded folder of job 1 is {folder!r}, which is outside the sweep folder" in done.err


# ---- the git state


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A repository in the current folder with a file that a filter is for."""
    for arguments in (["init", "-q"], ["config", "user.name", "a"], ["config", "user.email", "a@b.c"]):
        git(tmp_path, *arguments)
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / ".gitattributes").write_text("*.txt filter=mine diff=mine\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    return tmp_path


PROGRAMS = ["core.fsmonitor", "filter.mine.clean", "filter.mine.process", "diff.external", "diff.mine.textconv"]
PROGRAMS += ["diff.mine.command", "core.pager", "pager.status", "core.sshCommand", "gpg.program", "core.editor"]
PROGRAMS += ["alias.status", "alias.rev-parse", "alias.config", "core.alternateRefsCommand", "core.askPass"]
HOOKS = ["post-index-change", "reference-transaction", "fsmonitor-watchman", "post-checkout"]


@pytest.fixture
def programs(repository, tmp_path_factory):
    """A file that is there when git has started a program which the repository names."""
    folder = tmp_path_factory.mktemp("programs")
    program = folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {folder}/started\ncat\n")
    program.chmod(0o755)
    for key in PROGRAMS:
        git(repository, "config", key, f"!{program}" if key.startswith("alias") else str(program))
    for hook in HOOKS:
        shutil.copy(program, repository / ".git" / "hooks" / hook)
    os.utime(repository / "a.txt", (0, 0))  # git compares the file itself
    return folder / "started"


@pytest.mark.parametrize(("text", "dirty"), {"a\n": False, "b\n": True}.items(), ids=["unchanged", "changed"])
def test_reading_the_git_state_starts_no_program_of_the_repository(text, dirty, programs, repository):
    (repository / "a.txt").write_text(text)
    commit = (repository / ".git" / "refs" / "heads").iterdir()
    found = provenance()["git"]
    assert found == {"commit": next(commit).read_text().strip(), "dirty": dirty} and not programs.exists()


def test_the_test_above_would_see_a_program_that_is_started(programs, repository):
    git(repository, "status")
    assert programs.exists()


def test_the_git_state_is_that_of_the_work_tree_and_the_settings_of_how_files_compare_hold(repository):
    git(repository, "config", "core.fileMode", "false")
    git(repository, "worktree", "add", "-q", "below")
    (repository / "a.txt").chmod(0o755)
    assert provenance()["git"]["dirty"] is False
    (repository / "below" / "a.txt").write_text("b\n")
    os.chdir(repository / "below")
    assert provenance()["git"]["dirty"] is True
