"""An integral float such as 1e3 is an integer wherever a config is read; 1.5 is not."""

import copy
import pickle
from typing import Any

import pytest
from command import run_command
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from xlstm_hydra.configs import AdamWConfig, ConfigDict, ConfigError, TrainerConfig
from xlstm_hydra.hydra import SweepLoader, load, schema_node

RECIPE = "# @package _global_\ntrainer: {max_steps: 1e3, batch_size: 16.0}\nscheduler: {decay_steps: 2e3}\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def printed(*arguments: str) -> Any:
    """The config that the command prints, plain."""
    done = run_command("--cfg", "job", *arguments)
    assert done.status == 0, done.err
    return OmegaConf.to_container(OmegaConf.create(done.out))


def test_the_command_line_takes_one_and_the_composed_config_has_an_integer():
    cfg = printed("trainer.max_steps=1e3", "scheduler.decay_steps=2e3", "model.vocab_size=512.0")
    values = cfg["trainer"]["max_steps"], cfg["scheduler"]["decay_steps"], cfg["model"]["vocab_size"]
    assert values == (1000, 2000, 512) and {type(value) for value in values} == {int}


def test_a_yaml_file_of_the_users_takes_one(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(RECIPE)
    cfg = printed(f"--config-dir={tmp_path}", "experiment=mine")
    values = cfg["trainer"]["max_steps"], cfg["trainer"]["batch_size"], cfg["scheduler"]["decay_steps"]
    assert values == (1000, 16, 2000) and {type(value) for value in values} == {int}


def test_a_reference_to_one_takes_it(compose):
    run = load(compose("trainer.max_steps=1e3", "scheduler.warmup_steps=${optimizer.lr}", "optimizer.lr=10.0"))
    assert (run.trainer.max_steps, run.scheduler.warmup_steps) == (1000, 10)


def test_a_sweep_takes_one_in_every_job(compose):
    compose()  # so that Hydra is up
    loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
    for text, steps in {"1e3": 1000, "2e3": 2000}.items():
        cfg = SweepLoader(loader).load_sweep_config(master, [f"trainer.max_steps={text}"])
        assert cfg.trainer.max_steps == steps and type(cfg.trainer.max_steps) is int


def test_a_list_of_integers_takes_them(compose):
    run = load(compose("task=generate", "task.checkpoint=x", "task.prompt_tokens=[1e2,3]"))
    assert [*map(repr, run.task.get("prompt_tokens"))] == ["100", "3"]


@pytest.mark.parametrize(
    "read",
    [
        lambda value: TrainerConfig(max_steps=value),
        lambda value: ConfigDict.from_dict(TrainerConfig, {"max_steps": value}),
        lambda value: ConfigDict.from_dict(TrainerConfig, {"max_steps": str(value)}),
        lambda value: load({"model": {"model_class": "a.B"}, "trainer": {"max_steps": value}}),
    ],
    ids=["Python", "from_dict", "text in from_dict", "load"],
)
def test_every_other_reader_takes_one_too(read):
    try:
        assert type(read(1e3).max_steps) is int and read(1e3).max_steps == 1000
    except ConfigError as error:  # of the model alone
        assert "max_steps" not in str(error)
    with pytest.raises(ConfigError, match=r"max_steps: expected int, got '?1\.5"):
        read(1.5)
    with pytest.raises(ConfigError, match=r"max_steps: expected int, got '?1e\+30"):
        read(1e30)


@pytest.mark.parametrize("value", ["'0.1'", "'1e-3'", "9007199254740993", "true", "x"])
def test_a_value_that_is_not_a_float_is_rejected_as_in_python(value):
    done = run_command(f"optimizer.lr={value}")
    assert done.status == 2 and done.err.startswith("xlstm-hydra: optimizer.lr: expected float, got ")
    with pytest.raises(ConfigError, match="lr: expected float"):
        AdamWConfig(lr=OmegaConf.create(f"a: {value}").a)


@pytest.mark.parametrize("word", ["inf", "-inf", "nan"])
def test_the_floats_that_json_holds_as_text_are_read(compose, word):
    assert repr(compose(f"optimizer.lr='{word}'").optimizer.lr) == word


def test_text_of_an_environment_variable_is_read_as_a_number(compose, monkeypatch):
    monkeypatch.setenv("NUMBER", "5")
    run = load(compose("trainer.seed=${oc.env:NUMBER}", "optimizer.lr=${oc.env:NUMBER}"))
    assert (run.trainer.seed, run.optimizer.lr) == (5, 5.0)


@pytest.mark.parametrize(
    "value",
    ["1.5", "inf", "nan", "true", "null", "x", "'1.5'", "[1]", "1e400", "-1e400", "1e30", "9007199254740992.0", "'5'"],
)
def test_a_value_that_is_not_an_integer_is_rejected(value):
    done = run_command(f"trainer.max_steps={value}")
    assert done.status == 2 and "trainer.max_steps: expected int, got " in done.err and done.err.count("\n") == 1


def test_a_node_that_was_copied_or_pickled_takes_one_too():
    node = schema_node("trainer")
    for other in (node, copy.deepcopy(node), pickle.loads(pickle.dumps(node)), OmegaConf.merge(node, {"seed": 3.0})):
        OmegaConf.update(other, "max_steps", 1e3)
        assert type(other.max_steps) is int and type(other.seed) is int
        with pytest.raises(ValidationError):
            OmegaConf.update(other, "max_steps", 1.5)
