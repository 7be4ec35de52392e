"""Differences between two runs, and their effects."""

import dataclasses
import json

import pytest
from saved import composed

from xlstm_hydra import configs
from xlstm_hydra.configs import OPTIONS, ModelConfig, effect_of, resolve_classes
from xlstm_hydra.metadata import Difference, diff, read_record, write_metadata
from xlstm_hydra.runs import ABSENT, kind_of, not_compared


@dataclasses.dataclass(kw_only=True)
class OwnConfig(configs.mLSTMConfig):
    """A user's own config, without metadata."""

    bias: bool = True
    width: int = 3


def silent(config_class):
    """The fields that do not say what they change, and neither does a class that this one inherits them from."""
    bases = [base for base in config_class.__mro__ if dataclasses.is_dataclass(base)]
    said = {field.name for base in bases for field in dataclasses.fields(base) if field.metadata}
    return [field.name for field in dataclasses.fields(config_class) if field.name not in said]


@pytest.mark.parametrize("config_class", [ModelConfig, *OPTIONS.values()], ids=lambda cls: cls.__name__)
def test_every_field_declares_its_effect(config_class):
    assert silent(config_class) == []


def test_the_test_above_finds_a_field_without_an_effect():
    assert silent(OwnConfig) == ["width"]


def test_every_field_of_a_users_model_may_change_the_parameters():
    assert effect_of(OwnConfig, "width") == configs.Effect("parameters", compiled=True)


def test_a_subclass_that_changes_a_default_inherits_the_effect():
    assert effect_of(OwnConfig, "bias") == effect_of(configs.mLSTMConfig, "bias")
    assert effect_of(configs.LionConfig, "lr").traced and effect_of(configs.AdamWConfig, "weight_decay").traced


def test_bookkeeping_is_never_compiled_in():
    assert configs.affects("bookkeeping") == configs.affects("bookkeeping", compiled=False)


KINDS_OF = {
    "parallel.remat": "layout",
    "parallel.fsdp_gather_dtype": "numerics",
    "model.parallel": "layout",
    "model.model_class": "parameters",
    "model.dropout": "numerics",
    "trainer.ignore_plan": "bookkeeping",
    "trainer.unheard_of": "parameters",
    "hydra.launcher": "parameters",
}


@pytest.mark.parametrize(("key", "kind"), KINDS_OF.items(), ids=KINDS_OF)
def test_the_kind_of_effect_follows_from_a_typed_key(key, kind):
    assert kind_of(key) == kind


def test_equal_runs_do_not_differ():
    assert diff(composed("parallel=fsdp"), composed("parallel=fsdp")) == []


def test_the_strongest_effects_come_first():
    before = composed()
    after = composed("logger=quiet", "parallel.data_axis_size=1", "optimizer.lr=3", "model.num_blocks=3")
    assert diff(before, after) == [
        Difference("model.num_blocks", 2, 3, "parameters"),
        Difference("optimizer.lr", 1e-3, 3.0, "numerics"),
        Difference("parallel.data_axis_size", -1, 1, "layout"),
        Difference("logger.progress", True, False, "bookkeeping"),
        Difference("logger.tensorboard", True, False, "bookkeeping"),
    ]


def test_a_field_that_one_side_does_not_have_is_absent_there():
    found = {each.key: each for each in diff(composed(), composed("optimizer=sgd"))}
    assert found["optimizer.momentum"] == Difference("optimizer.momentum", ABSENT, 0.0, "numerics")
    assert found["optimizer.beta1"].after is ABSENT


def test_a_record_is_compared_with_a_run():
    run = composed("parallel=fsdp")
    assert diff(read_record(json.dumps(write_metadata(run))), run) == []


def test_groups_that_only_one_side_recorded_are_listed():
    record = read_record(json.dumps(write_metadata(composed())))
    part = dataclasses.replace(record, groups={name: record.groups[name] for name in ("model", "parallel")})
    assert diff(record, part) == []
    assert "data" in not_compared(record, part) and "model" not in not_compared(record, part)


SMALL = {"vocab_size": 32, "embedding_dim": 32, "num_blocks": 2, "context_length": 64}
BASES = {
    "mLSTM": configs.mLSTMConfig(**SMALL, num_heads=4, dropout=0.1, ff_type="ffn_gated", ff_proj_factor=2.5),
    "mLSTMv1": configs.mLSTMv1Config(**SMALL, num_heads=4, dropout=0.1),
    "xLSTM": configs.xLSTMConfig(**SMALL, num_heads=4, slstm_at=[1], dropout=0.1),
    "Llama": configs.LlamaConfig(**SMALL, head_dim=8, dropout_rate=0.1),
}
OTHER = {  # another value, where it is neither the other boolean nor twice the number
    "dtype": "float32", "lm_head_dtype": "bfloat16", "gate_dtype": "bfloat16", "ff_dtype": "float32",
    "gate_soft_cap": 15.0, "init_distribution": "uniform", "init_distribution_embed": "uniform", "slstm_at": [0],
    "logits_soft_cap": 30.0,
    "init_distribution_out": "uniform", "output_init_fn": "zeros", "igate_bias_init_range": -10.0, "ff_type": "ffn",
    "fgate_bias_init_range": [1.0, 2.0], "slstm_fgate_bias_init_range": [1.0, 2.0], "slstm_forget_gate": "exp",
    "gate_input": "x_mlstm", "act_fn": "relu", "backend": "recurrent", "attention_backend": None, "num_heads": 2,
    "dropout": 0.2, "dropout_rate": 0.2, "round_proj_up_to_multiple_of": 48, "v_dim_factor": 2.0, "head_dim": 4,
    "ffn_multiple_of": 48, "chunk_size": 16, "ff_round_proj_up_to_multiple_of": 48,
}  # fmt: skip
TOGETHER = {
    "round_proj_up_dim_up": {"round_proj_up_to_multiple_of": 40},
    "reset_fgate_value": {"reset_at_document_boundaries": True},
    "head_dim": {"qk_norm": True},
    "gate_linear_headwise": {"gate_input": "x_mlstm"},
}
"""What else has to be set for a field to have an effect."""
CELL_NORMS = ("norm_type", "cell_norm_type", "cell_norm_type_v1")


KNOWN = {}


def shapes(name, config):
    """The names and shapes of a model's parameters."""
    if (key := repr(config)) not in KNOWN:
        KNOWN[key] = _shapes(name, config)
    return KNOWN[key]


def _shapes(name, config):
    from xlstm_hydra.models import list_parameters

    model = resolve_classes(ModelConfig(f"xlstm_hydra.models.{name}", model_config=config))
    return {parameter.path: parameter.shape for parameter in list_parameters(model)}


def other(config, key):
    """Another value of a field."""
    value = getattr(config, key)
    if key in CELL_NORMS:
        return "rmsnorm" if value == "layernorm" else "layernorm"
    return OTHER[key] if key in OTHER else (not value if isinstance(value, bool) else value * 2)


SLOW = ("mLSTM", "xLSTM")
FAMILIES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in BASES]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_field_changes_the_shapes_of_parameters_if_and_only_if_it_is_classed_so(name):
    config = BASES[name]
    unlike = {}
    for field in dataclasses.fields(config):
        base = dataclasses.replace(config, **TOGETHER.get(field.name, {}))
        changed = dataclasses.replace(base, **{field.name: other(base, field.name)})
        unlike[field.name] = "parameters" if shapes(name, changed) != shapes(name, base) else "same"
    classed = {key: "parameters" if effect_of(type(config), key).kind == "parameters" else "same" for key in unlike}
    assert unlike == classed
