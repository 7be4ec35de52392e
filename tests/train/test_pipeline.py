"""A pipeline, with the blocks split into stages, gives the results of one device."""

import logging

import jax
import numpy as np
import pytest
from exact import assert_equal_results, moved, program, single
from flax import traverse_util
from stablehlo import count_collectives, lowered
from tiny import FSDP, batch, results, tiny_run

from xlstm_hydra.configs import ConfigError, ModelConfig, ParallelConfig, mLSTMv1Config
from xlstm_hydra.parallel import bubble_fraction
from xlstm_hydra.step import build_program
from xlstm_hydra.train import RunPlan, announce

LAYOUTS = {
    "pp2": {"pipeline_axis_size": 2},
    "pp4": {"pipeline_axis_size": 4},
    "pp2_fsdp4": {"pipeline_axis_size": 2, "fsdp_axis_size": 4, **FSDP},
    "pp2_tp2_dp2": {"pipeline_axis_size": 2, "model_axis_size": 2},
}
MODEL = {"num_blocks": 4, "dropout": 0.3, "add_embedding_dropout": True}
pytestmark = pytest.mark.usefixtures("float64")


FAST = [("v1", "pp4"), ("v1", "pp2_fsdp4"), ("v0", "pp2"), ("v0", "pp2_tp2_dp2")]
SLOW = [("v1", "pp2"), ("v1", "pp2_tp2_dp2"), ("v0", "pp4"), ("v0", "pp2_fsdp4")]


@pytest.mark.parametrize(("family", "layout"), [*FAST, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW)])
def test_loss_and_gradients_are_those_of_one_device(family, layout):
    params, expected = single(family, **MODEL)
    assert_equal_results(results(program(family, LAYOUTS[layout], model=MODEL), params), expected)


SETTINGS = {
    "two microbatches": {"pipeline_microbatches": 2},
    "as many microbatches as rows": {"pipeline_microbatches": 4},
    "stages recomputed": {"pipeline_remat": True},
}


@pytest.mark.parametrize("trainer", SETTINGS.values(), ids=SETTINGS)
def test_no_setting_of_the_pipeline_changes_a_gradient(trainer):
    params, expected = single("v1", **MODEL)
    layout = {"pipeline_axis_size": 2, "model_axis_size": 2}
    on = program("v1", layout, model=MODEL, trainer=trainer)
    assert on.axes.microbatches == trainer.get("pipeline_microbatches", 4)
    assert_equal_results(results(on, params), expected)


def test_gradient_accumulation_runs_the_pipeline_once_per_part():
    trainer = {"gradient_accumulate_steps": 2}
    one = program("v1", model=MODEL, trainer=trainer)
    params = moved(one)
    on = program("v1", LAYOUTS["pp4"], model=MODEL, trainer={**trainer, "batch_size": 16})
    assert on.axes.microbatches == 4
    on = program(
        "v1", {"data_axis_size": 1, "pipeline_axis_size": 4, "model_axis_size": 2}, model=MODEL, trainer=trainer
    )
    assert_equal_results(results(on, params), results(one, params))


def test_tied_weights_get_the_gradients_of_embedding_and_head():
    params, expected = single("v1", **MODEL, tie_weights=True)
    on = program("v1", LAYOUTS["pp2_tp2_dp2"], model=MODEL | {"tie_weights": True})
    assert_equal_results(results(on, params), expected)


def test_initial_values_are_those_of_one_device():
    one, many = (jax.device_get(program("v1", choice, model=MODEL).init().params) for choice in (None, LAYOUTS["pp4"]))
    jax.tree.map(np.testing.assert_array_equal, one, many)


def test_validation_gives_the_loss_of_one_device():
    params, _ = single("v1", **MODEL)
    losses = []
    for layout in (None, LAYOUTS["pp2_tp2_dp2"]):
        on = program("v1", layout, model=MODEL)
        placed = jax.device_put(params, on.state_shardings.params), jax.device_put(batch(), on.batch_sharding)
        losses.append(jax.device_get(on.eval_step(*placed)))
    np.testing.assert_allclose(*losses, rtol=1e-12)


def test_each_device_holds_only_the_blocks_of_its_stage():
    on = program("v1", LAYOUTS["pp4"], model=MODEL)
    arrays = traverse_util.flatten_dict(on.init().params, sep=".")
    for placement in on.placements:
        in_blocks = placement.parameter.path.startswith("blocks.")
        shard = arrays[placement.parameter.path].addressable_shards[0].data
        assert (placement.spec[0] == "pp") == in_blocks
        assert (
            shard.nbytes
            == placement.bytes_per_device
            == arrays[placement.parameter.path].nbytes // (4 if in_blocks else 1)
        )


def test_only_activations_move_between_stages_and_the_head_is_split_over_stages():
    on, program = lowered(LAYOUTS["pp4"] | {"data_axis_size": 2}, model={"num_blocks": 4})
    found = count_collectives(program)
    assert found["collective-permute", "f32"] == 2  # in the loop over ticks, forwards and backwards
    assert found["reduce-scatter", "f32"] == found["all-gather", "f32"] == 1  # what the last stage hands out
    text = program.as_text()
    assert "tensor<1x16x32xf32>" in text and "tensor<4x16x32xf32>" in text
    assert on.axes.microbatches == 4


@pytest.mark.parametrize(
    ("rows", "stages", "count"), [(8, 2, 8), (64, 2, 8), (12, 2, 6), (2, 2, 2), (64, 4, 16)], ids=str
)
def test_by_default_there_are_up_to_four_microbatches_per_stage(rows, stages, count):
    run = tiny_run(parallel={"pipeline_axis_size": stages}, model={"num_blocks": 4}, trainer={"batch_size": rows})
    assert run.trainer.microbatches(1, 1, stages) == count


def test_the_run_logs_its_bubble(caplog):
    with caplog.at_level(logging.INFO, "xlstm_hydra"):
        announce(build_program(tiny_run("llama", LAYOUTS["pp2"])), RunPlan(None, None), [])
    assert "pipeline 2 stages, 2 microbatches, bubble 33.3%" in caplog.text
    assert bubble_fraction(4, 12) == 3 / 15


def test_a_class_without_stages_is_refused_even_if_its_config_allows_them():
    from flax import linen as nn

    class Own(nn.Module):
        config: mLSTMv1Config

        @nn.compact
        def __call__(self, tokens_BT):
            return nn.Embed(32, 32)(tokens_BT)

    run = tiny_run(parallel=LAYOUTS["pp2"])
    run.model = ModelConfig(Own, ParallelConfig(**LAYOUTS["pp2"]), run.model.model_config)
    with pytest.raises(ConfigError, match=r"pipeline_axis_size=2: .*Own does not support pipeline parallelism"):
        build_program(run)


def memory(**trainer):
    model = {"num_blocks": 16, "embedding_dim": 64}
    parallel = {"data_axis_size": 2, "pipeline_axis_size": 4, "remat": ["mLSTMBlock"]}
    with jax.enable_x64(False):
        program = lowered(parallel, model=model, trainer={"batch_size": 64} | trainer)[1]
        return program.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_recomputing_stages_keeps_fewer_activations():
    block_inputs = 32 * 16 * 64 * 4 * 3  # the rows of a device through the 3 blocks of a stage that are not its first
    assert memory() - memory(pipeline_remat=True) > block_inputs
