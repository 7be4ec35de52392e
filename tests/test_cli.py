"""Exit status, output and files of the command. Only the slow test trains."""

import gc
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from unittest import mock

import jax
import pytest
from command import run_command
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError
from saved import composed, save

import xlstm_hydra
import xlstm_hydra.inference
import xlstm_hydra.plan
import xlstm_hydra.train
from xlstm_hydra import errors
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.runs import hold_folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def train(monkeypatch):
    """Replaces the training by a function."""
    return lambda function: monkeypatch.setattr(xlstm_hydra.train, "train", function)


def test_a_run_writes_its_resolved_config_into_its_folder(train, tmp_path):
    train(lambda run, folder, overrides: None)
    assert run_command("parallel=fsdp", "hydra.run.dir=run").status == 0
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert saved.model.parallel == saved.parallel and saved.parallel.data_axis_size == 1


def test_the_training_gets_the_overrides_that_were_typed(train):
    typed = []
    train(lambda run, folder, overrides: typed.extend(overrides))
    run_command("parallel=fsdp", "trainer.seed=3", "hydra.run.dir=run")
    assert typed == ["parallel=fsdp", "trainer.seed=3"]


def test_a_config_rejected_by_its_machine_gives_status_2_and_no_traceback(train):
    def refuse(run, folder, overrides):
        raise ConfigError([Problem({"parallel.fsdp_axis_size": 4}, "there is one device")])

    train(refuse)
    done = run_command("parallel=fsdp")
    assert (done.status, done.err) == (2, "xlstm-hydra: parallel.fsdp_axis_size=4: there is one device\n")


@pytest.fixture
def failing(train):
    """Replaces the training by one that raises an error."""

    def fail_with(error):
        def fail(run, folder, overrides):
            raise error

        train(fail)

    return fail_with


BUGS = [ValueError("a bug"), KeyError("a bug"), AssertionError("a bug"), ConfigKeyError("a bug"), OSError(9, "a bug")]


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_bug_while_training_gives_status_1_and_a_traceback_with_the_folder(failing, error):
    failing(error)
    done = run_command("hydra.run.dir=run")
    assert done.status == 1
    assert "Traceback" in done.err and "The run's folder is " in done.err
    assert done.err.endswith(f"The error was raised by {__file__}, which is not part of xlstm-hydra.\n")


def test_a_bug_message_has_the_issue_address_and_versions(train):
    train(None)  # so that the command cannot call it
    done = run_command("hydra.run.dir=run")
    assert done.status == 1 and "Traceback" in done.err
    assert "This is a bug in xlstm-hydra. Please report it with this traceback.\nxlstm-hydra " in done.err
    assert f"jax {version('jax')}" in done.err and "Python 3." in done.err


def test_a_folder_whose_name_starts_like_the_environment_belongs_to_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    file = tmp_path / "env_project" / "model.py"
    file.parent.mkdir()
    file.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile(file.read_text(), file, "exec"))
    assert errors.bug_report(caught.value) == f"The error was raised by {file}, which is not part of xlstm-hydra."


class JaxRuntimeError(RuntimeError):
    """An error with the name of JAX's own, by which it is recognized."""


CONDITIONS = {
    "a diverged loss": (FloatingPointError("loss of step 3 is nan."), "loss of step 3 is nan."),
    "a full disk": (OSError(28, "No space left on device", "run/x"), "'run/x': No space left on device. Free some"),
    "a full disk, unnamed": (OSError(28, "No space left on device"), "No space left on device. Free some"),
    "a read-only disk": (
        OSError(30, "Read-only file system", "x"),
        "'x': Read-only file system. Make the folder",
    ),
    "a broken disk": (OSError(5, "Input/output error", "a", None, "b"), "'a' -> 'b': Input/output error"),
    "text of its own": (FileNotFoundError("process 1 does not see it"), "process 1 does not see it"),
    "memory": (MemoryError("Unable to allocate 1 GiB"), "the memory of this machine is exhausted: Unable to allocate"),
    "device memory": (
        JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
        "the memory of the devices is exhausted: Out of memory allocating 9 bytes. Use a smaller trainer.batch_size",
    ),
    "no devices": (
        RuntimeError("Unable to initialize backend 'tpu': not found"),
        "JAX cannot use the devices: Unable to initialize backend 'tpu': not found. Set JAX_PLATFORMS to use others",
    ),
}


@pytest.mark.parametrize(("error", "words"), CONDITIONS.values(), ids=CONDITIONS)
def test_a_condition_of_the_machine_gives_status_1_and_one_message(failing, error, words, tmp_path):
    failing(error)
    done = run_command("hydra.run.dir=run")
    assert done.status == 1 and done.err.startswith(f"xlstm-hydra: {words}")
    assert done.err.endswith(f"\nThe run's folder is {tmp_path / 'run'}\n")
    assert "Traceback" not in done.err


REMOVED = "For simplicity, JAX has removed its internal frames from the traceback of the following exception."


@pytest.mark.parametrize(
    ("module", "notes"),
    [("jax._src.pjit", []), ("flax.core", ["----", REMOVED])],
    ids=["whole", "without JAX's frames"],
)
def test_a_nan_found_by_jax_is_shown_with_its_location(train, module, notes):
    error = FloatingPointError("invalid value (nan) in jit(log)")
    for note in notes:
        error.add_note(note)
    found = {"__name__": module, "error": error}
    exec("def find(run, folder, overrides): raise error", found)
    train(found["find"])
    done = run_command("debug=nans", "hydra.run.dir=run")
    assert done.status == 1 and done.err.startswith("Traceback") and "This is a bug" not in done.err
    assert "\nxlstm-hydra: invalid value (nan) in jit(log)\n" in done.err


def test_a_condition_is_shown_with_its_traceback_on_request(failing, monkeypatch):
    failing(OSError(28, "No space left on device"))
    monkeypatch.setattr(errors, "wants_traceback", lambda: True)
    done = run_command("hydra.run.dir=run")
    assert done.status == 1 and "Traceback" in done.err and "xlstm-hydra: No space left on device" in done.err


def test_a_full_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    command = [sys.executable, "-m", "xlstm_hydra", "parallel=fsdpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "MissingConfigException" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("xlstm-hydra: parallel='fsdpp': no such option.")


def test_an_unknown_flag_gives_status_2():
    done = run_command("--nope")
    assert done.status == 2 and "--nope: no such flag. Known: --from, --lenient, --help, " in done.err


def test_showing_the_config_runs_and_writes_nothing(tmp_path):
    done = run_command("--cfg", "job", "parallel=fsdp")
    assert OmegaConf.create(done.out).parallel.fsdp_axis_size == -1
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_has_a_config_shown_still_collects_garbage_afterwards():
    assert run_command("--cfg", "job").status == 0
    assert gc.isenabled()


def test_a_config_that_breaks_a_rule_can_still_be_shown():
    assert OmegaConf.create(run_command("--cfg", "job", "optimizer.lr=-1").out).optimizer.lr == -1


def test_the_help_lists_groups_with_their_options_and_examples():
    done = run_command("--help")
    assert done.status == 0
    assert "parallel: auto, dp, fsdp, fsdp_tp, pp, tp" in done.out and done.out.count("\n    xlstm-hydra ") == 11
    assert "xlstm_hydra/" not in done.out
    assert done.out.count("\n") < 60


def test_every_example_of_the_help_composes(tmp_path):
    save(tmp_path / "outputs" / "my_run", composed(), step=2000)
    lines = [line for line in run_command("--help").out.splitlines() if line.startswith("    xlstm-hydra ")]
    examples = [line.strip() for line in lines if "resume_sweep=" not in line]  # that requires a sweep
    for example in examples:
        typed = [text for text in shlex.split(example)[1:] if "," not in text and text not in ("-m", "--cfg", "job")]
        done = run_command("--cfg", "job", *typed)
        assert done.status == 0, (example, done.err)


def test_a_folder_in_use_by_another_run_is_rejected(tmp_path):
    (tmp_path / "run").mkdir()
    with hold_folder(tmp_path / "run"):
        done = run_command("hydra.run.dir=run")
    assert done.status == 2 and "another run is writing in this folder" in done.err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_version_lists_python_the_libraries_and_the_devices():
    done = run_command("--version")
    own, python, libraries, devices = done.out.splitlines()
    assert done.status == 0 and own == f"xlstm-hydra {xlstm_hydra.__version__}"
    assert python.startswith(f"Python {platform.python_version()} on ")
    assert f"hydra-core {version('hydra-core')}, " in libraries and f"jax {version('jax')}, " in libraries
    assert devices == "devices: 8 x cpu (cpu)"


def test_the_version_is_printed_even_if_jax_cannot_start(monkeypatch):
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=RuntimeError("no driver")))
    done = run_command("--version")
    assert done.status == 0 and done.out.splitlines()[-1] == "devices: JAX cannot start: RuntimeError: no driver"


def test_a_model_of_the_user_is_found_in_the_current_folder(tmp_path, train):
    (tmp_path / "my_models.py").write_text(
        "from dataclasses import dataclass\n"
        "from xlstm_hydra.configs import SubModelConfig\n"
        "@dataclass(kw_only=True)\n"
        "class MyConfig(SubModelConfig):\n"
        "    vocab_size: int = 256\n"
        "    context_length: int = 32\n"
        "class MyModel:\n"
        "    config: MyConfig\n"
    )
    runs = []
    train(lambda run, folder, overrides: runs.append(run))
    done = run_command("model=custom", "model.model_class=my_models.MyModel", "+model.context_length=64")
    assert done.status == 0, done.err
    assert runs[0].model.model_config.context_length == 64
    assert "Did you mean 'MyModel'?" in run_command("model=custom", "model.model_class=my_models.MyModle").err


TASKS = {"train": [], "evaluate": ["task.checkpoint=run"], "generate": ["task.checkpoint=run"], "plan": []}


@pytest.mark.parametrize("name", TASKS)
def test_each_task_runs_the_function_of_its_name(monkeypatch, name):
    done = []
    for other in TASKS:
        module = {"train": xlstm_hydra.train, "plan": xlstm_hydra.plan}.get(other, xlstm_hydra.inference)
        monkeypatch.setattr(module, other, lambda *args, other=other: done.append(other))
    assert run_command(f"task={name}", *TASKS[name]).status == 0
    assert done == [name]


PROMPTS = {
    "punctuation": "f(x, y): {'a'}",
    "lines": 'one\ntwo "three"',
    "a reference": "${nope} \\",
    "a number": "1.0e3",
    "nothing": "null",
    "spaces": " a ",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_is_not_parsed_by_hydras_grammar(monkeypatch, prompt):
    runs = []
    monkeypatch.setattr(xlstm_hydra.inference, "generate", lambda run, *_: runs.append(run))
    done = run_command("task=generate", "task.checkpoint=run", f"task.prompt={prompt}", "trainer.seed=3")
    assert done.status == 0, done.err
    assert runs[0].task.prompt == prompt


def test_prompts_can_be_quoted_for_hydra_and_swept(monkeypatch):
    prompts = []
    monkeypatch.setattr(xlstm_hydra.inference, "generate", lambda run, *_: prompts.append(run.task.prompt))
    generate = ["task=generate", "task.checkpoint=run"]
    run_command(*generate, "task.prompt='a (b)'")
    run_command("-m", *generate, "task.prompt=c,d")
    assert prompts == ["a (b)", "c", "d"]


@pytest.mark.parametrize(("words", "told"), [(["it is in x"], "; it is in x"), ([], "")])
def test_an_interrupted_task_reports_its_last_checkpoint(train, words, told):
    def interrupt(run, folder, overrides):
        raise KeyboardInterrupt(*words)

    train(interrupt)
    done = run_command()
    assert done.status == 130 and done.err == f"xlstm-hydra: interrupted{told}\n"


@pytest.mark.slow
def test_the_command_trains_and_then_rejects_a_config_for_this_machine(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}

    def run(*overrides):
        command = [sys.executable, "-m", "xlstm_hydra", *overrides]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    done = run("debug=fast", "hydra.run.dir=run")
    assert done.returncode == 0 and "step 3/3" in done.stdout
    for overrides, words in {
        ("parallel.data_axis_size=1000", "trainer.batch_size=1000"): "must equal the number of devices",
        ("data=text", "data.path=nope"): "data.path='nope': no files found",
        ("checkpoint.restore=nope",): "checkpoint.restore='nope': no checkpoints in",
    }.items():
        done = run(*overrides)
        assert done.returncode == 2
        assert words in done.stderr and "Traceback" not in done.stderr
