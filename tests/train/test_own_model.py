"""A plain Flax class, written without this package, trains on every layout."""

import functools
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from command import run_command
from flax import linen as nn
from flax import traverse_util
from hydra import compose, initialize
from saved import save
from tiny import LAYOUTS, results

import xlstm_hydra.train
from xlstm_hydra.cli import main as cli
from xlstm_hydra.configs import (
    ConfigError,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    SyntheticDataConfig,
    TrainerConfig,
    resolve_classes,
)
from xlstm_hydra.hydra import load, make_model_config
from xlstm_hydra.models import apply_model, build_model, continue_model, init_model, knows_axes
from xlstm_hydra.parallel import build_mesh
from xlstm_hydra.step import build_program
from xlstm_hydra.train import train

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_model"
OWN = {"fsdp_modules": ["GRUBlock", "Embed"], "remat": ["GRUBlock"], "fsdp_min_weight_size": 0}


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))


def own(layout=None, **fields):
    parallel = dict(LAYOUTS[layout]) if layout else {}
    if "fsdp_modules" in parallel:
        parallel |= OWN
    fields = {"vocab_size": 32, "context_length": 16, "hidden": 16} | fields
    model = make_model_config(model_class="gru_lm.GRULanguageModel", parallel=ParallelConfig(**parallel), **fields)
    return RunConfig(model=model, data=SyntheticDataConfig(motif_length=4), trainer=TrainerConfig(batch_size=8))


@functools.cache
def on_one_device():
    """Initial parameters, and their loss and gradients."""
    one = build_program(own(), build_mesh(own().parallel, jax.devices()[:1]))
    params = jax.device_get(one.init().params)
    return params, results(one, params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_loss_and_gradients_are_those_of_one_device(layout):
    params, expected = on_one_device()
    got = results(build_program(own(layout)), params)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    for path, gradient in got[1].items():
        np.testing.assert_allclose(gradient, expected[1][path], atol=1e-5, err_msg=path)


def test_fsdp_shards_its_parameters():
    on = build_program(own("fsdp8"))
    arrays = traverse_util.flatten_dict(on.init().params, sep=".")
    kernel = arrays["GRUBlock_0.GRUCell_0.hn.kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


def test_generation_equals_one_pass_over_all_tokens():
    module = build_model(own(layers=1).model)
    quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    params = quick(lambda: init_model(module, jax.random.key(0)))()
    tokens = np.random.default_rng(0).integers(0, 32, (2, 8))

    @quick
    def both(tokens):
        first, cache = continue_model(module, params, {}, tokens[:, :5], capacity=8)
        second, _ = continue_model(module, params, cache, tokens[:, 5:], capacity=8)
        return (first, second), apply_model(module, params, tokens)

    parts, whole = both(tokens)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def composed(*overrides):
    with initialize(version_base="1.3", config_path=None):
        search = f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]"
        return compose("config", overrides=[search, *overrides])


def test_it_is_chosen_by_a_yaml_option():
    run = load(composed("model=gru", "model.layers=3"))
    config = resolve_classes(run.model).model_config
    assert type(config).__name__ == "GRUConfig" and (config.hidden, config.layers) == (96, 3)


def test_it_can_be_chosen_by_overrides_only():
    run = load(composed("model=custom", "model.model_class=gru_lm.GRULanguageModel", "+model.hidden=24"))
    assert resolve_classes(run.model).model_class is sys.modules["gru_lm"].GRULanguageModel
    assert run.model.model_config.hidden == 24


def test_an_unrelated_field_named_axes_is_not_changed():
    class Other(nn.Module):
        config: Any
        axes: str = "xyz"

    assert not knows_axes(ModelConfig(Other)) and knows_axes(resolve_classes(load(composed()).model))


MISTAKES = {
    "custom rule": (["model=gru", "model.layers=0"], r"model\.layers=0: must be 1 or more"),
    "unknown field": (["model=gru", "+model.hiden=3"], r"model\.hiden: no such field in GRUConfig.*'hidden'"),
    "wrong type": (["model=gru", "model.hidden=wide"], r"model\.hidden: expected int, got 'wide'"),
    "no such class": (["model=gru", "model.model_class=gru_lm.GRU"], r"gru_lm has no GRU"),
    "no such module": (
        ["model=gru", "model.model_class=nowhere.GRU"],
        r"cannot be imported: No module named 'nowhere'",
    ),
}


@pytest.mark.parametrize(("overrides", "words"), MISTAKES.values(), ids=MISTAKES)
def test_its_config_is_checked_like_a_built_in_one(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load(composed(*overrides))


def test_unknown_module_names_are_refused_when_the_model_is_built():
    with pytest.raises(
        ConfigError, match=r"parallel.fsdp_modules='mLSTMBlock': not a module class of this model.*GRUBlock"
    ):
        run = own("fsdp8")
        run.model.parallel.fsdp_modules = ["mLSTMBlock"]
        build_program(run)


IDLE = {
    "collective matmul": (
        {"model_axis_size": 2, "tp_async_dense": True},
        r"GRULanguageModel has no tensor-parallel layer",
    ),
    "dtypes of unused collectives": (
        {"fsdp_axis_size": 2, "fsdp_modules": ["GRUBlock"], "fsdp_gather_dtype": "bfloat16"},
        r"fsdp_min_weight_size=262144: .*has no parameter that FSDP shards. Lower parallel.fsdp_min_we",
    ),
}


@pytest.mark.parametrize(("parallel", "words"), IDLE.values(), ids=IDLE)
def test_parallelism_that_it_does_not_support_is_refused(parallel, words):
    run = own()
    run.model.parallel = ParallelConfig(**parallel)
    with pytest.raises(ConfigError, match=words):
        build_program(run)


def test_it_trains_and_saves(tmp_path):
    run = load(
        composed(
            "model=gru",
            "data=synthetic",
            "debug=fast",
            "checkpoint=default",
            "model.layers=1",
            "data.motif_length=4",
            "+model.context_length=16",
            "trainer.simulated_devices=8",
        )
    )
    loss = train(run, tmp_path)
    assert loss is not None and np.isfinite(loss)
    assert (tmp_path / "checkpoints" / "3").is_dir()


def test_the_example_program_resumes_a_run_that_the_command_refuses(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: started.append(run.model))
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "run", own())
    monkeypatch.setattr("xlstm_hydra.configs._registry._prefixes", set())
    assert "allow_modules" in run_command("resume=run").err and not started
    with mock.patch.object(cli, "main", lambda: None):
        runpy.run_path(str(EXAMPLE / "run.py"), run_name="__main__")
    assert run_command("resume=run").status == 0
    assert started[0].class_path() == "gru_lm.GRULanguageModel"
