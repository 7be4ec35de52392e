"""What differs between two runs, and how much it matters."""

import dataclasses
import json

import pytest
from saved import composed

from xlstm_hydra import configs
from xlstm_hydra.configs import ModelConfig, resolve_classes
from xlstm_hydra.hydra import SCHEMAS
from xlstm_hydra.metadata import Difference, diff, read_record, write_metadata
from xlstm_hydra.runs import ABSENT, KINDS, not_compared
from xlstm_hydra.runs._diff import EFFECTS, _kind

OF_RUNS = [schema for name, schema in SCHEMAS.items() if name not in ("slurm", "local")]
OWN = [ModelConfig, *(schema.__bases__[-1] if "Node" in schema.__name__ else schema for schema in OF_RUNS)]


@pytest.mark.parametrize("config_class", OWN, ids=lambda cls: cls.__name__)
def test_every_field_of_ours_is_classed_once(config_class):
    for field in dataclasses.fields(config_class):
        owners = [
            cls for cls in config_class.__mro__ if any(field.name in t.split() for t in EFFECTS.get(cls, {}).values())
        ]
        assert owners, f"add {field.name} to EFFECTS in metadata/_difference.py"


@pytest.mark.parametrize("config_class", EFFECTS, ids=lambda cls: cls.__name__)
def test_every_entry_of_the_table_is_a_field(config_class):
    names = [name for text in EFFECTS[config_class].values() for name in text.split()]
    assert EFFECTS[config_class].keys() <= KINDS.keys() and len(set(names)) == len(names)
    assert set(names) <= {field.name for field in dataclasses.fields(config_class)}


def test_equal_runs_do_not_differ():
    assert diff(composed("parallel=fsdp"), composed("parallel=fsdp")) == []


def test_what_matters_most_comes_first():
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


def test_groups_that_one_side_did_not_record_are_told():
    record = read_record(json.dumps(write_metadata(composed())))
    part = dataclasses.replace(record, groups={name: record.groups[name] for name in ("model", "parallel")})
    assert diff(record, part) == []
    assert "data" in not_compared(record, part) and "model" not in not_compared(record, part)


def test_of_a_model_of_the_users_own_any_field_may_change_the_parameters():
    @dataclasses.dataclass(kw_only=True)
    class OwnConfig(configs.SubModelConfig):
        width: int = 3

    assert _kind(OwnConfig, "width") == "parameters"


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
    classed = {key: "parameters" if _kind(type(config), key) == "parameters" else "same" for key in unlike}
    assert unlike == classed
