"""Strict reading of metadata in the formats of xlstm-jax. Problems are reported with the paths in the file."""

import pytest
from published import BLOCK, CELL, ERAS, FEED_FORWARD, LAYER, PARALLEL, nested, tree, with_none_strings

from xlstm_hydra.configs import AdamWConfig, ConstantConfig, CosineConfig, LinearConfig
from xlstm_hydra.metadata import MetadataError, read_record
from xlstm_hydra.runs import starting_groups

KINDS = ("mlstm", "mlstm_v1", "llama")
MODEL = "model.model_config"


def read(kind="mlstm", changes=(), write=with_none_strings, **kwargs):
    return read_record(write(tree(kind, changes)), **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_file_was_written_does_not_matter(kind):
    records = [read(kind, write=write) for write in ERAS.values()]
    assert all(record.groups == records[0].groups for record in records[1:])
    assert all(record.notes == records[0].notes for record in records[1:])


@pytest.mark.parametrize("write", ERAS.values(), ids=ERAS)
def test_layouts_come_back_with_their_names_and_tuples_as_lists(write):
    layout = read(write=write).model.parallel
    assert layout.fsdp_axis_name == "shärd" and layout.remat == ["mLSTMBlock"]
    assert (layout.data_axis_size, layout.fsdp_axis_size, layout.fsdp_min_weight_size) == (2, -1, 100)
    assert layout.tp_async_dense and layout.fsdp_gather_dtype == "bfloat16" and layout.fsdp_grad_scatter_dtype is None


def test_a_layout_may_be_printed_with_the_module_of_its_class():
    layout = (
        f"xlstm_jax.models.configs.ParallelConfig({', '.join(f'{key}={value!r}' for key, value in PARALLEL.items())})"
    )
    assert read(changes={"model.parallel": layout}).model == read().model


def test_each_nested_field_becomes_its_flat_name():
    config = read("mlstm").model.model_config
    assert (config.cell_norm_eps, config.norm_eps, config.cell_norm_type) == (1e-5, 1e-4, "rmsnorm")
    assert (config.qk_dim_factor, config.output_init_fn, config.conv1d_kernel_size) == (0.5, "wang2", 3)
    assert (config.igate_bias_init_range, config.gate_soft_cap, config.chunk_size) == ([-10.0, -2.5], 15.0, 32)
    config = read("mlstm_v1").model.model_config
    assert (config.proj_factor, config.ff_type, config.act_fn, config.ff_dtype) == (2.5, "ffn", "gelu", "float32")
    assert (config.cell_norm_type_v1, config.norm_type) == ("layernorm", "rmsnorm")


WITH_A_FEED_FORWARD = {
    "ff_type": "ffn",
    "ff_proj_factor": 2.5,
    "ff_round_proj_up_dim_up": True,
    "ff_round_proj_up_to_multiple_of": 64,
    "act_fn": "gelu",
    "ff_dtype": "float32",
    "proj_factor": 2.0,
    "round_proj_up_to_multiple_of": 32,
}


@pytest.mark.parametrize("write", ERAS.values(), ids=ERAS)
def test_a_feed_forward_layer_beside_the_original_layer_has_a_width_of_its_own(write):
    config = read("mlstm", {f"{BLOCK}.feedforward": FEED_FORWARD}, write=write).model.model_config
    assert {name: getattr(config, name) for name in WITH_A_FEED_FORWARD} == WITH_A_FEED_FORWARD
    assert config.ff_dim() == FEED_FORWARD["_proj_up_dim"]
    assert read("mlstm").model.model_config.ff_type is None


def test_a_block_of_v1_may_have_no_feed_forward_layer():
    config = read("mlstm_v1", {f"{BLOCK}.feedforward": None}).model.model_config
    assert config.ff_type is None and config.ff_dim() == 0


EPSILONS = {
    "final norm": ({f"{MODEL}.norm_eps": 1e-3}, "norm_eps", 1e-3),
    "norms inside": ({f"{CELL}.norm_eps": 1e-3}, "cell_norm_eps", 1e-3),
    "triton": ({f"{CELL}.backend.kwargs.eps": 1e-3}, "cell_eps", 1e-3),
    "recurrent": ({f"{CELL}.backend": {"name": "recurrent", "kwargs": {"eps": 0}, "_registry": {}}}, "cell_eps", 0),
    "not recorded": ({}, "cell_eps", 1e-6),
}


@pytest.mark.parametrize(("changes", "name", "value"), EPSILONS.values(), ids=EPSILONS)
def test_every_epsilon_is_read(changes, name, value):
    assert getattr(read(changes=changes, write=nested).model.model_config, name) == value


THEN = {
    "no soft cap": ({f"{CELL}.gate_soft_cap": ...}, "gate_soft_cap", None),
    "gates in the type of the layer": ({f"{CELL}.gate_dtype": ...}, "gate_dtype", "bfloat16"),
    "head in float32": ({f"{MODEL}.lm_head_dtype": ...}, "lm_head_dtype", "float32"),
    "eps of the norms inside": ({f"{CELL}.norm_eps": ...}, "cell_norm_eps", 1e-5),
    "layer type": ({f"{LAYER}.layer_type": ...}, "v_dim_factor", 1.0),
    "input of the gates": ({f"{LAYER}.gate_input": ...}, "gate_input", "qkv"),
}


@pytest.mark.parametrize(("changes", "name", "value"), THEN.values(), ids=THEN)
def test_a_field_that_did_not_exist_yet_has_the_behavior_of_that_time(changes, name, value):
    assert getattr(read(changes=changes).model.model_config, name) == value


def test_a_feed_forward_or_a_layout_that_did_not_exist_yet_is_none():
    record = read(changes={f"{BLOCK}.feedforward": ..., f"{LAYER}.parallel": None})
    assert record.model == read().model


DISAGREE = {
    "width": ("mlstm", {f"{LAYER}.embedding_dim": 65}, f"{LAYER}.embedding_dim=65, {MODEL}.embedding_dim=64"),
    "type": ("mlstm", {f"{CELL}.dtype": "float32"}, f"{CELL}.dtype='float32', {MODEL}.dtype='bfloat16'"),
    "heads": ("mlstm", {f"{CELL}.num_heads": 2}, f"{CELL}.num_heads=2, {LAYER}.num_heads=4"),
    "bias": ("mlstm_v1", {f"{BLOCK}.feedforward.bias": False}, f"{BLOCK}.feedforward.bias=false, {MODEL}.bias=true"),
    "norm": ("mlstm_v1", {f"{CELL}.norm_type": "layernorm"}, f"{CELL}.norm_type='layernorm', {MODEL}.norm_type="),
    "initial values": (
        "mlstm_v1",
        {f"{BLOCK}.feedforward.output_init_fn": "zeros"},
        f"{BLOCK}.feedforward.output_init_fn='zeros', {LAYER}.output_init_fn='wang2'",
    ),
    "layout": (
        "llama",
        {f"{MODEL}.parallel": {**PARALLEL, "data_axis_size": 3}},
        f"{MODEL}.parallel.data_axis_size=3, model.parallel.data_axis_size=2",
    ),
    "derived width": (
        "mlstm",
        {f"{CELL}.embedding_dim": 127},
        ": expected 128 from .*_dim=64.*, got 127",
    ),
    "derived count": ("mlstm", {f"{MODEL}._block_map": "0,0,1"}, "expected '0,0,0' from .*num_blocks=3, got '0,0,1'"),
}


@pytest.mark.parametrize(("kind", "changes", "words"), DISAGREE.values(), ids=DISAGREE)
def test_two_levels_that_disagree_are_an_error_that_names_both(kind, changes, words):
    with pytest.raises(MetadataError, match=words):
        read(kind, changes)


def test_the_cell_of_the_original_block_may_have_a_norm_of_its_own():
    assert read(changes={f"{CELL}.norm_type": "layernorm"}).model.model_config.cell_norm_type == "layernorm"


UNSAID = {
    "sLSTM": ("mlstm", {f"{MODEL}.slstm_at": [1]}, r"slstm_at: not supported: expected \[\], got \[1\]"),
    "layer type": ("mlstm", {f"{LAYER}.layer_type": "mlstm_v2"}, "layer_type: expected mlstm or mlstm_v1, got"),
    "attention": ("mlstm", {f"{CELL}.backend.name": "attention"}, "backend.name: .* softmax attention, not an mLSTM"),
    "backend": ("mlstm", {f"{CELL}.backend.name": "triton_kernel"}, "Did you mean 'triton_kernels'"),
    "normalizer": (
        "mlstm",
        {f"{CELL}.backend.kwargs": {"norm_val": 2.0}},
        "kwargs.norm_val: not supported: expected 1.0, got 2.0. Here, the normalizer",
    ),
    "negative eps": (
        "mlstm",
        {f"{CELL}.backend.kwargs": {"eps": -1e-5}},
        r"backend\.kwargs\.eps=-1e-05: must be 0 or more",
    ),
    "feed-forward width": (
        "mlstm",
        {f"{BLOCK}.feedforward": FEED_FORWARD | {"proj_factor": -1.0, "_proj_up_dim": -64}},
        r"feedforward\.proj_factor=-1\.0: must be greater than 0",
    ),
    "limit by default": (
        "mlstm",
        {f"{CELL}.backend": {"name": "fwbw_stabilized", "kwargs": {}, "_registry": {}}},
        "kwargs.stabilize_correctly: not supported: expected true, got false",
    ),
    "random forget gates": ("mlstm", {f"{CELL}.fgate_bias_init_range": None}, f"{CELL}.fgate_bias_init_range: not"),
}


@pytest.mark.parametrize(("kind", "changes", "words"), UNSAID.values(), ids=UNSAID)
def test_an_unsupported_value_is_an_error_with_its_reason(kind, changes, words):
    with pytest.raises(MetadataError, match=words):
        read(kind, changes, write=nested)


def test_a_broken_rule_is_reported_with_the_keys_of_the_file():
    with pytest.raises(MetadataError) as error:
        read(changes={f"{LAYER}.num_heads": 3, f"{CELL}.num_heads": 3})
    assert f"{LAYER}.num_heads=3: {LAYER}.num_heads must divide" in str(error.value)


BACKENDS = {
    "parallel_stabilized": ({"context_length": 96}, "quadratic", 64),
    "triton_kernels": ({"chunk_size": 48, "stabilize_correctly": True}, "chunkwise", 48),
    "recurrent": ({"use_scan": True}, "recurrent", 64),
    "recurrent_triton": ({"eps": 1e-6}, "recurrent", 64),
    "fwbw_stabilized": ({"stabilize_correctly": True, "chunk_size": None}, "chunkwise", 48),
}


@pytest.mark.parametrize(("name", "expected"), BACKENDS.items(), ids=BACKENDS)
def test_a_published_backend_becomes_the_equivalent_one_of_ours(name, expected):
    settings, backend, chunk_size = expected
    record = read(changes={f"{CELL}.backend": {"name": name, "kwargs": settings, "_registry": {}}}, write=nested)
    assert (record.model.model_config.backend, record.model.model_config.chunk_size) == (backend, chunk_size)
    assert any(f"backend.name={name}" in note for note in record.notes)


def test_a_field_without_effect_is_read_as_the_actual_behavior_with_a_note():
    then = {"tie_weights": True, "weight_decay_on_embedding": True, "add_post_blocks_norm": False}
    record = read(changes={f"{MODEL}.{name}": value for name, value in then.items()})
    assert record.model == read().model
    assert all(any(f"{MODEL}.{name}=" in note for note in record.notes) for name in then)


def test_a_chunk_size_that_does_not_divide_the_context_is_replaced_with_a_note():
    record = read(changes={f"{CELL}.backend.kwargs.chunk_size": 20})
    assert record.model.model_config.chunk_size == 48
    assert any("chunk_size=20 does not divide the context length 96; using 48" in note for note in record.notes)


def test_a_value_without_effect_is_kept_and_a_run_from_it_resets_it():
    record = read(changes={f"{CELL}.reset_at_document_boundaries": False})
    assert record.model.model_config.reset_fgate_value == -30.0
    groups, notes = starting_groups(record)
    assert groups["model"].model_config.reset_fgate_value == -25.0
    told = "has no effect with this model.reset_at_document_boundaries"
    assert f"model.reset_fgate_value=-30.0 is reset to -25.0: {told}" in notes


def test_a_missing_kernel_is_reported_on_the_platform():
    config = read("llama").model.model_config
    (problem,) = config.platform_rules("gpu")
    assert "attention_backend='pallas_triton': xlstm-hydra does not have this kernel" in str(problem)


WRONG = {
    "unknown field": ({f"{LAYER}.num_head": 4}, f"{LAYER}.num_head: no such field. Did you mean 'num_heads'"),
    "unknown section": ({"optimiser": {}}, "optimiser: no such field. Did you mean 'optimizer'"),
    "no chunk": ({f"{CELL}.backend.kwargs.chunk_size": 0}, f"{CELL}.backend.kwargs.chunk_size=0: must be 1 or more"),
    "missing": ({f"{LAYER}.num_heads": ...}, f"{LAYER}.num_heads: missing"),
    "no model": ({"model": ...}, "model: expected an object, got null"),
    "missing section": ({f"{CELL}.backend": ...}, f"{CELL}.backend: expected an object, got null"),
    "missing axis": ({"model.parallel": {"data_axis_size": 1}}, "model.parallel.fsdp_axis_size: missing"),
    "word for a number": ({f"{MODEL}.vocab_size": "300"}, f"{MODEL}.vocab_size: expected a whole number, got '300'"),
    "truth for a number": ({f"{LAYER}.proj_factor": True}, f"{LAYER}.proj_factor: expected a number, got true"),
    "number for truth": ({f"{LAYER}.vmap_qk": 1}, f"{LAYER}.vmap_qk: expected true or false, got 1"),
    "null for a copy": ({f"{LAYER}.embedding_dim": None}, f"{LAYER}.embedding_dim: expected a whole number, got null"),
    "no layout": ({f"{LAYER}.parallel": ...}, f"{LAYER}.parallel: missing"),
    "tool": ({"trainer.logger.log_tools": [{"wb_taks": []}]}, r"log_tools\[0\]\.wb_taks: no such .* 'wb_tags'"),
    "another class": (
        {"model.parallel": "Parallel(a=1)"},
        "model.parallel: expected a ParallelConfig, got 'Par",
    ),
    "a call": ({"model.parallel": "ParallelConfig(remat=open('x'))"}, "has a positional argument"),
    "model class": ({"model.model_class": "os.system"}, "model.model_class: 'os.system' is neither a model cl"),
    "callback": ({"trainer.callbacks": [{"a": 1}]}, r"trainer.callbacks\[0\]: no known callback has .* 'a'"),
    "optimizer field": ({"optimizer.beta_1": 0.9}, "optimizer.beta_1: no such field. Did you mean 'beta1'"),
    "optimizer type": ({"optimizer.beta1": "x"}, "optimizer.beta1: expected a number, got 'x'"),
    "settings of another": ({f"{CELL}.backend.kwargs": "mLSTMBackendFwbwConfig(a=1)"}, "expected a mLSTMBackendTri"),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_reported_with_the_path_of_the_field(changes, words):
    with pytest.raises(MetadataError, match=words):
        read(changes=changes, write=nested)


def test_all_problems_are_reported_at_once():
    changes = {f"{MODEL}.vocab_size": None, f"{CELL}.num_head": 1, "optimizer.beta1": [], "trainer.seed": ...}
    with pytest.raises(MetadataError) as error:
        read(changes=changes)
    assert len(error.value.problems) == 4


def test_a_lenient_reading_keeps_unknown_fields_and_lists_them():
    record = read(changes={f"{LAYER}.colour": "red", "trainer.mood": 1}, lenient=True)
    assert set(record.unknown) == {f"{LAYER}.colour", "trainer.mood"}
    assert record.model == read().model
    assert record.content["model"]["model_config"]["mlstm_block"]["mlstm"]["colour"] == "red"


# ---- optimizer, schedule, trainer


def test_optimizer_schedule_and_trainer_become_our_groups():
    groups = read().groups
    assert groups["optimizer"] == AdamWConfig(
        lr=2e-3, beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.2, grad_clip_norm=0.5,
        weight_decay_include=[r".*(kernel|\"x\")$"],
    )  # fmt: skip
    assert groups["scheduler"] == CosineConfig(
        decay_steps=500, warmup_steps=20, cooldown_steps=50, cooldown_lr_factor=0.05, end_lr_factor=0.2
    )
    trainer, checkpoint = groups["trainer"], groups["checkpoint"]
    assert (trainer.seed, trainer.gradient_accumulate_steps, trainer.eval_every_n_steps) == (5, 4, 250)
    assert (trainer.max_steps, groups["logger"].log_every_n_steps) == (500, 7)
    assert (checkpoint.max_to_keep, checkpoint.keep, checkpoint.save_every_n_steps) == (3, "best", 250)


OPTIMIZERS = {
    "nadamw": ({"optimizer.name": "nadamw"}, {"nesterov": True}),
    "adam without decay": ({"optimizer.name": "adam", "optimizer.weight_decay": 0}, {"weight_decay": 0.0}),
    "sgd": (
        {"optimizer.name": "sgd", "optimizer.weight_decay": 0, "optimizer.nesterov": True},
        {"name": "sgd", "momentum": 0.8, "nesterov": True},
    ),
    "all decay": ({"optimizer.weight_decay_include": None}, {"weight_decay_include": [".*"]}),
    "nesterov of adamw": ({"optimizer.nesterov": True}, {"nesterov": False}),
}


@pytest.mark.parametrize(("changes", "expected"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_is_read_as_its_actual_behavior(changes, expected):
    optimizer = read(changes=changes).groups["optimizer"]
    assert {name: getattr(optimizer, name) for name in expected} == expected


LEFT_OUT = {
    "optimizer of theirs": ({"optimizer.name": "lamb"}, "optimizer", "not supported: optimizer 'lamb'"),
    "growing decay": ({"optimizer.name": "sgd"}, "optimizer", "made the parameters grow"),
    "schedule of theirs": ({"optimizer.scheduler.name": "wsd"}, "scheduler", "not supported: schedule 'wsd'"),
    "exponential to 0": (
        {"optimizer.scheduler.name": "exponential_decay", "optimizer.scheduler.end_lr_factor": None},
        "scheduler",
        "never reaches 0",
    ),
    "two ends": ({"optimizer.scheduler.end_lr": 1e-3}, "scheduler", "end_lr is 0.5 times lr, but end_lr_factor=0.2"),
    "every checkpoint": ({"trainer.callbacks.0.max_to_keep": None}, "checkpoint", "keeps every checkpoint"),
}


@pytest.mark.parametrize(("changes", "group", "words"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_group_that_cannot_be_represented_is_omitted_and_the_model_is_read(changes, group, words):
    record = read(changes=changes)
    assert group not in record.groups and record.model == read().model
    assert any(f"without the group {group}" in note and words in note for note in record.notes)


SCHEDULES = {
    "of no steps": (
        {"decay_steps": 0, "warmup_steps": 0, "cooldown_steps": 0, "cooldown_lr": 0.0},
        ConstantConfig(),
    ),
    "end as a rate": (
        {"name": "linear", "end_lr": 1e-4, "end_lr_factor": None},
        LinearConfig(decay_steps=500, warmup_steps=20, cooldown_steps=50, cooldown_lr_factor=0.05, end_lr_factor=0.05),
    ),
    "no end": (
        {"end_lr_factor": None, "cooldown_steps": 0},
        CosineConfig(decay_steps=500, warmup_steps=20, end_lr_factor=0.0),
    ),
    "constant": ({"name": "constant", "cooldown_steps": 0}, ConstantConfig(warmup_steps=20)),
}


@pytest.mark.parametrize(("changes", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_is_read_as_its_actual_behavior(changes, expected):
    record = read(changes={f"optimizer.scheduler.{name}": value for name, value in changes.items()})
    assert record.groups["scheduler"] == expected


def test_a_record_of_the_model_alone_is_read():
    record = read(changes={"optimizer": ..., "trainer": ...})
    assert set(record.groups) == {"model", "parallel"} and record.model == read().model
