"""If no plan can be made, only commands that ask for a plan fail."""

import json
from pathlib import Path

import jax
import pytest
from command import run_command
from omegaconf import OmegaConf
from tiny import tiny_run
from unplannable import forget_scan, mystery_run

from xlstm_hydra.configs import AutoParallelConfig
from xlstm_hydra.parallel import build_mesh
from xlstm_hydra.plan import PlanError
from xlstm_hydra.step import build_program
from xlstm_hydra.sweep import plan_points
from xlstm_hydra.train import choose_layout, plan_program, train

REASON = "the parameters of the primitive 'scan' cannot be read "
HERE = OmegaConf.create({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"})
AUTO = ("parallel=auto", "task.num_devices=2")
SWEEP = ("-m", "task=plan", "task.num_devices=2", "parallel=dp,fsdp", "hydra.sweep.dir=sweep")


@pytest.fixture
def unreadable(monkeypatch, tmp_path):
    """A JAX whose programs the planner cannot read, in a fresh working directory."""
    forget_scan(monkeypatch)
    monkeypatch.chdir(tmp_path)


def test_a_run_without_a_plan_trains_with_one_warning(unreadable, tmp_path, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    train(tiny_run(trainer={"max_steps": 3}), tmp_path)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"no plan can be made, and the run continues without one: {REASON}")
    assert f"jax {jax.__version__}, jaxlib" in warning
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert kept["no_plan"] in warning and kept["measured"]["step_seconds"] > 0
    assert any(text.startswith("measured ") and "predicted" not in text for text in caplog.messages)


def test_the_traceback_of_the_planner_is_logged_at_debug_level(unreadable, caplog):
    caplog.set_level("DEBUG", "xlstm_hydra")
    one = build_mesh(tiny_run().parallel, jax.devices()[:1])
    assert plan_program(build_program(tiny_run(), one)).plan is None
    assert "KeyError: 'ft_in'" in caplog.text and "UnknownForm" in caplog.text


def test_a_model_with_an_unknown_primitive_trains_and_its_plan_has_a_note(tmp_path, caplog):
    caplog.set_level("INFO", "xlstm_hydra")
    run = mystery_run()
    run.trainer.max_steps, run.trainer.eval_batches = 1, 0
    run.checkpoint.save_every_n_steps, run.checkpoint.save_last = 0, False
    train(run, tmp_path)
    assert "primitives not known to the planner, counted as one operation per element: mystery" in caplog.messages
    assert json.loads((tmp_path / "plan.json").read_text())["work"]["unknown_primitives"] == ["mystery"]


def test_a_layout_cannot_be_chosen_without_plans(unreadable):
    run = tiny_run()
    run.model.parallel = AutoParallelConfig()
    with pytest.raises(PlanError, match="parallel=auto needs plans .* Choose a layout instead, such as parallel=fsdp"):
        choose_layout(run)


@pytest.mark.parametrize("arguments", [(), AUTO, ("task.search=true", "task.num_devices=2")], ids=str)
def test_a_plan_that_fails_is_one_message_with_the_versions(unreadable, arguments):
    done = run_command("task=plan", "hydra.run.dir=run", *arguments)
    assert done.status == 1
    message, folder = done.err.splitlines()
    assert message.startswith(f"xlstm-hydra: no plan can be made: {REASON}") and f"jax {jax.__version__}, " in message
    assert folder == f"The run's folder is {Path('run').absolute()}"
    assert not Path("run/plan.json").exists()


def test_each_failing_plan_of_a_sweep_is_one_message(unreadable):
    done = run_command(*SWEEP)
    assert done.status == 1 and "Traceback" not in done.out + done.err
    for number in range(2):
        assert f"job {number} failed: no plan can be made: {REASON}" in done.out


def test_points_of_a_sweep_that_cannot_be_planned_are_launched_with_one_warning(unreadable, caplog):
    runs = {number: tiny_run(trainer={"max_steps": 1, "batch_size": 8 * (number + 1)}) for number in range(3)}
    assert plan_points(runs, HERE) == {}
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"jobs 0, 1, 2 cannot be planned and will be launched without a plan: {REASON}")
