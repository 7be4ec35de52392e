"""What the command returns, prints and leaves behind. Nothing is trained here but in the slow test."""

import importlib
import os
import shlex
import subprocess
import sys

import pytest
from command import run_command
from omegaconf import OmegaConf
from saved import composed, save

import xlstm_hydra
import xlstm_hydra.inference
import xlstm_hydra.train
from xlstm_hydra import job
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.metadata import hold_folder


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


def test_a_config_that_its_machine_refuses_gives_status_2_and_no_traceback(train):
    def refuse(run, folder, overrides):
        raise ConfigError([Problem({"parallel.fsdp_axis_size": 4}, "there is one device")])

    train(refuse)
    done = run_command("parallel=fsdp")
    assert (done.status, done.err) == (2, "xlstm-hydra: parallel.fsdp_axis_size=4: there is one device\n")


@pytest.mark.parametrize("error", [FloatingPointError("loss is nan"), ValueError("a bug"), OmegaConf.create({})])
def test_an_error_while_training_gives_status_1_and_a_traceback_with_the_folder(train, error):
    def fail(run, folder, overrides):
        raise error if isinstance(error, Exception) else KeyError("a bug")

    train(fail)
    done = run_command("hydra.run.dir=run")
    assert done.status == 1
    assert "Traceback" in done.err and "The run's folder is " in done.err


def test_a_full_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    command = [sys.executable, "-m", "xlstm_hydra", "parallel=fsdpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "MissingConfigException" in done.stderr


def test_an_unknown_flag_gives_status_2():
    done = run_command("--nope")
    assert done.status == 2 and "--nope: no such flag. Known: --from, --help, " in done.err


def test_showing_the_config_runs_and_writes_nothing(tmp_path):
    done = run_command("--cfg", "job", "parallel=fsdp")
    assert OmegaConf.create(done.out).parallel.fsdp_axis_size == -1
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_breaks_a_rule_can_still_be_shown():
    assert OmegaConf.create(run_command("--cfg", "job", "optimizer.lr=-1").out).optimizer.lr == -1


def test_the_help_lists_groups_with_their_options_and_examples_on_one_screen():
    done = run_command("--help")
    assert done.status == 0
    assert "parallel: auto, dp, fsdp, fsdp_tp, pp, tp" in done.out and done.out.count("\n  xlstm-hydra ") == 11
    assert "xlstm_hydra/" not in done.out
    assert done.out.count("\n") < 40


def test_every_example_of_the_help_composes(tmp_path):
    save(tmp_path / "outputs" / "my_run", composed(), step=2000)
    lines = [line for line in run_command("--help").out.splitlines() if line.startswith("  xlstm-hydra ")]
    examples = [line.strip().split("  ")[0] for line in lines if "resume_sweep=" not in line]  # it needs a sweep
    for example in examples:
        typed = [text for text in shlex.split(example)[1:] if "," not in text and text not in ("-m", "--cfg", "job")]
        done = run_command("--cfg", "job", *typed)
        assert done.status == 0, (example, done.err)


def test_a_folder_that_another_run_holds_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with hold_folder(tmp_path / "run"):
        done = run_command("hydra.run.dir=run")
    assert done.status == 2 and "another run is writing in this folder" in done.err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_version_is_told_with_hydras():
    done = run_command("--version")
    assert done.status == 0 and done.out.startswith(f"xlstm-hydra {xlstm_hydra.__version__} (Hydra 1.")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("parallel=fs", {"parallel=fsdp", "parallel=fsdp_tp"}),
        ("optimizer.l", {"optimizer.lr="}),
        ("x", {""}),
        ("debug=", {"debug=fast", "debug=nans"}),
    ],
)
def test_tab_completion_knows_groups_options_and_keys(monkeypatch, typed, expected):
    line = f"xlstm-hydra {typed}"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert set(run_command("-sc", "query=bash").out.strip().split(" ")) == expected


def test_a_model_of_the_users_is_found_in_the_current_folder(tmp_path, train):
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
def test_each_task_is_done_by_the_function_of_its_name(monkeypatch, name):
    done = []
    for other, module in job.TASKS.items():
        monkeypatch.setattr(importlib.import_module(module), other, lambda *args, other=other: done.append(other))
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
def test_a_prompt_is_text_whatever_it_would_mean_to_hydra(monkeypatch, prompt):
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
def test_an_interrupted_task_says_what_is_left_of_it(train, words, told):
    def interrupt(run, folder, overrides):
        raise KeyboardInterrupt(*words)

    train(interrupt)
    done = run_command()
    assert done.status == 130 and done.err == f"xlstm-hydra: interrupted{told}\n"


@pytest.mark.slow
def test_the_command_trains_and_then_refuses_what_only_the_machine_can_know(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}

    def run(*overrides):
        command = [sys.executable, "-m", "xlstm_hydra", *overrides]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    done = run("debug=fast", "hydra.run.dir=run")
    assert done.returncode == 0 and "step 3/3" in done.stdout
    for overrides, words in {
        ("parallel.data_axis_size=1000", "trainer.batch_size=1000"): "must equal the number of devices",
        ("data=text", "data.path=nope"): "data.path='nope': there are no files there",
        ("checkpoint.restore=nope",): "checkpoint.restore='nope': no checkpoints in",
    }.items():
        done = run(*overrides)
        assert done.returncode == 2
        assert words in done.stderr and "Traceback" not in done.stderr
