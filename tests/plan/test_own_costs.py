"""Models that say themselves what they cost."""

from dataclasses import replace

import pytest
from tiny import LAYOUTS, tiny_run

from xlstm_hydra.configs import ConfigError
from xlstm_hydra.hydra import load_device
from xlstm_hydra.models import list_parameters
from xlstm_hydra.plan import Activations, Exchange, make_plan

H100 = load_device("h100_80gb")
TRACED = tiny_run().model
PASS = Exchange("all-gather", ("tp",), "float32", 100, 3)


class Costs:
    """Those of a model that has the parameters of the tiny one, and says what it likes of the rest."""

    def parameters(self):
        return list_parameters(TRACED)

    def module_classes(self):
        return ["Embed", "LMHead", "mLSTMBlock"]

    def activations(self, share):
        return Activations(1000 * share.rows, 200 * share.rows, 30, {"bfloat16": 1e6 * share.rows}, exchanges=[PASS])


class Untraceable:
    """No Flax class at all."""

    @staticmethod
    def plan_costs(config):
        return Costs()


def plan(layout, model_class=Untraceable, **trainer):
    run = tiny_run(parallel=LAYOUTS[layout], trainer=trainer)
    return make_plan(replace(run, model=replace(run.model, model_class=model_class)), 8, H100)


def exchanged(planned, axes):
    """Executions of each collective over the mesh axes whose gradients and parameters are exchanged."""
    found = {}
    for exchange in planned.counts.exchanges:
        if set(exchange.axes) <= set(axes) and exchange.bytes > 4:  # the loss and the number of targets are scalars
            key = exchange.operation, exchange.axes, exchange.dtype, exchange.bytes
            found[key] = found.get(key, 0) + exchange.count
    return found


@pytest.mark.parametrize("layout", ["dp8", "fsdp8"])
@pytest.mark.parametrize("parts", [1, 2], ids=lambda parts: f"{parts} parts")
def test_parameters_cause_the_same_collectives_as_in_a_traced_model(layout, parts):
    batch = {"batch_size": 16, "gradient_accumulate_steps": parts}
    own, traced = plan(layout, **batch), plan(layout, TRACED.model_class, **batch)
    assert exchanged(own, ("dp", "fsdp")) == exchanged(traced, ("dp", "fsdp"))
    assert own.memory.parameters == traced.memory.parameters
    assert own.memory.optimizer == traced.memory.optimizer


def test_the_plan_contains_the_costs_of_the_model():
    planned = plan("dp8", batch_size=64, gradient_accumulate_steps=4)
    assert (planned.memory.activations, planned.memory.working, planned.memory.logits) == (2000, 400, 30)
    assert planned.counts.product_flops == {"bfloat16": 8e6}
    assert replace(PASS, count=12) in planned.counts.exchanges


def test_an_unknown_module_class_is_refused():
    run = tiny_run(parallel=LAYOUTS["fsdp8"] | {"remat": ["Dense"]})
    with pytest.raises(ConfigError, match="Known: Embed, LMHead, mLSTMBlock"):
        make_plan(replace(run, model=replace(run.model, model_class=Untraceable)), 8, H100)
