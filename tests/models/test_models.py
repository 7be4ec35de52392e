"""Properties of every model family: sizes, causality, names, and effects of all options."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hydra import compose, initialize
from tiny import FAMILIES
from untrained import random_params

from xlstm_hydra.configs import (
    ConfigError,
    LlamaConfig,
    ModelConfig,
    ParallelConfig,
    mLSTMConfig,
    mLSTMv1Config,
    resolve_classes,
    xLSTMConfig,
)
from xlstm_hydra.hydra import load
from xlstm_hydra.models import apply_model, build_model, init_model, list_parameters

PUBLISHED = {
    "mlstm_120m": 120_536_928,
    "mlstm_165m": 163_806_144,
    "mlstm_1_3b": 1_422_559_616,
    "mlstm_7b": 6_889_935_872,
    "mlstm_v1_165m": 164_073_312,
    "mlstm_v1_1_3b": 1_420_839_104,
    "mlstm_v1_2_7b": 2_780_449_600,
    "mlstm_v1_7b": 6_865_424_896,
    "llama_165m": 162_220_800,
    "llama_1_3b": 1_420_396_544,
    "llama_7b": 6_863_196_160,
}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize(("option", "count"), PUBLISHED.items(), ids=PUBLISHED)
def test_a_published_size_has_the_published_number_of_parameters(option, count):
    with initialize(version_base="1.3", config_path=None):
        run = load(compose("config", overrides=[f"model={option}"]))
    parameters = list_parameters(resolve_classes(run.model))
    assert sum(math.prod(parameter.shape) for parameter in parameters) == count


@families
def test_the_config_names_the_class_of_the_model(family):
    model = FAMILIES[family]()
    assert model.model_config.flax_class == model.class_path()


@families
def test_the_config_lists_exactly_the_module_classes_of_the_model(family):
    model = FAMILIES[family]()
    owners = {name for parameter in list_parameters(model) for name in parameter.modules}
    assert set(model.model_config.module_classes()) == owners
    assert owners.issuperset(model.model_config.block_classes())


@families
def test_every_parameter_is_float32(family):
    assert {parameter.dtype for parameter in list_parameters(FAMILIES[family](dtype="bfloat16"))} == {"float32"}


def some_tokens(seed=0, rows=2):
    return jax.random.randint(jax.random.key(seed), (rows, 16), 0, 32)


def params_of(model):
    """Parameters changed from the initial zeros of the gates."""
    return random_params(model, 0.2)


@functools.cache
def compiled(path, text, train):
    """Forward pass of a model, compiled once for all tests."""
    module = build_model(with_config(path, text))
    return jax.jit(lambda params, *args, key=None: apply_model(module, params, *args, train=train, dropout_key=key))


def with_config(path, text):
    """The model of a class with a config written as JSON."""
    classes = {"mLSTM": mLSTMConfig, "mLSTMv1": mLSTMv1Config, "xLSTM": xLSTMConfig, "Llama": LlamaConfig}
    config_class = classes[path.rpartition(".")[2]]
    return resolve_classes(ModelConfig(path, model_config=config_class.from_dict(config_class, json.loads(text))))


def outputs(model, tokens, borders=None, key=None, params=None):
    path = f"xlstm_hydra.models.{model.model_class.__name__}"
    forward = compiled(path, json.dumps(model.model_config.to_dict()), key is not None)
    return forward(params_of(model) if params is None else params, tokens, borders, key=key)


FORMS = [
    *((family, {"backend": form}) for family in ("v1", "v0") for form in ("chunkwise", "quadratic", "recurrent")),
    ("llama", {"attention_backend": "xla"}),
    ("llama", {"attention_backend": None}),
]


@pytest.mark.parametrize(("family", "form"), FORMS, ids=lambda part: part if isinstance(part, str) else str(part))
def test_no_logit_depends_on_a_later_token(family, form):
    tokens = some_tokens()
    changed = tokens.at[:, 9].set((tokens[:, 9] + 1) % 32)
    model = FAMILIES[family](num_blocks=2 if family == "xlstm" else 1, **form)
    before, after = outputs(model, tokens), outputs(model, changed)
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert jnp.all(jnp.any(before[:, 9:] != after[:, 9:], axis=-1))


@families
def test_an_example_does_not_depend_on_its_neighbors(family):
    both = outputs(FAMILIES[family](), some_tokens())
    np.testing.assert_allclose(outputs(FAMILIES[family](), some_tokens()[:1]), both[:1], atol=1e-5)


APART = {
    "v1": {"reset_at_document_boundaries": True},
    # The convolutions still see kernel_size - 1 tokens across the border, as published.
    "v0": {"reset_at_document_boundaries": True, "conv1d_kernel_size": 1},
    "xlstm": {"reset_at_document_boundaries": True, "conv1d_kernel_size": 1, "slstm_conv1d_kernel_size": 0},
    "llama": {"mask_across_document_boundaries": True},
}


@families
def test_a_document_is_independent_of_earlier_ones_if_documents_are_separated(family):
    model = FAMILIES[family](**APART[family])
    borders = jnp.zeros((2, 16), bool).at[:, 8].set(True)
    tokens = some_tokens()
    other = tokens.at[:, :8].set((tokens[:, :8] + 5) % 32)
    np.testing.assert_allclose(outputs(model, tokens, borders)[:, 8:], outputs(model, other, borders)[:, 8:], atol=1e-4)


@families
def test_scanned_and_separate_blocks_compute_the_same(family):
    scanned, unrolled = FAMILIES[family](), FAMILIES[family](scan_blocks=False)
    params = params_of(scanned)
    separate = {key: value for key, value in params.items() if key != "blocks"}
    period = scanned.model_config.scan_period()
    for i in range(scanned.model_config.num_blocks):
        stacked = params["blocks"] if period == 1 else params["blocks"][f"block_{i % period}"]
        separate[f"blocks_{i}"] = jax.tree.map(lambda x, row=i // period: x[row], stacked)
    tokens = some_tokens()
    np.testing.assert_allclose(
        outputs(scanned, tokens, params=params), outputs(unrolled, tokens, params=separate), atol=1e-5
    )


OPTIONS = {
    "shared": {
        "logits_soft_cap": 0.5, "tie_weights": True, "add_post_blocks_norm": False, "add_post_norm": True,
        "norm_type": "layernorm", "norm_eps": 0.5, "cell_norm_eps": 0.5, "dtype": "bfloat16",
        "lm_head_dtype": "bfloat16", "init_distribution": "uniform", "init_distribution_embed": "truncated_normal",
        "init_distribution_out": "uniform", "output_init_fn": "small", "num_blocks": 1,
    },
    "cell": {
        "qk_dim_factor": 2.0, "v_dim_factor": 2.0, "gate_soft_cap": 0.1, "gate_dtype": "bfloat16",
        "igate_bias_init_range": [-3.0, 3.0], "fgate_bias_init_range": [0.0, 1.0], "add_qk_norm": True, "num_heads": 2,
        "bias": True, "cell_eps": 0.5,
    },
    "v1": {
        "proj_factor": 5.0, "round_proj_up_to_multiple_of": 16, "ff_type": "ffn", "act_fn": "relu^2",
        "ff_dtype": "bfloat16", "cell_norm_type_v1": "rmsnorm",
    },
    "v0 feed-forward": {
        "ff_type": "ffn", "ff_proj_factor": 5.0, "ff_round_proj_up_dim_up": False, "act_fn": "relu^2",
        "ff_round_proj_up_to_multiple_of": 16, "ff_dtype": "bfloat16",
    },
    "v0": {
        "proj_factor": 3.0, "round_proj_up_to_multiple_of": 16, "conv1d_kernel_size": 2, "qkv_proj_blocksize": 8,
        "vmap_qk": True, "gate_input": "x_mlstm_conv_act", "gate_linear_headwise": True, "cell_norm_type": "rmsnorm",
    },
    "llama": {
        "head_dim": 16, "qk_norm": True, "causal": False, "theta": 100.0, "ffn_multiple_of": 16,
        "ffn_dim_multiplier": 2.0, "use_bias": True, "mask_across_document_boundaries": True,
    },
}  # fmt: skip
OPTIONS["xlstm"] = OPTIONS["v0"] | {
    "slstm_at": [0, 2], "slstm_conv1d_kernel_size": 0, "slstm_forget_gate": "exp", "slstm_proj_factor": 3.0,
    "slstm_fgate_bias_init_range": [0.0, 1.0], "ff_type": "ffn", "act_fn": "relu^2", "ff_dtype": "bfloat16",
}  # fmt: skip
PARTS = {
    "v1": ("shared", "cell", "v1"),
    "v0": ("shared", "cell", "v0", "v0 feed-forward"),
    "xlstm": ("shared", "cell", "xlstm"),
    "llama": ("shared", "llama"),
}
CASES = [
    (family, key, value) for family, parts in PARTS.items() for part in parts for key, value in OPTIONS[part].items()
]


@pytest.mark.parametrize(("family", "key", "value"), CASES, ids=[f"{f}-{k}" for f, k, _ in CASES])
def test_an_option_changes_the_model(family, key, value):
    # 1.2 times 32 is between two multiples of 16 and of 64, so that rounding shows.
    extra = {"proj_factor": 1.2} if key == "round_proj_up_to_multiple_of" else {}
    if family == "v0" and key in OPTIONS["v0 feed-forward"]:
        extra = {"ff_type": "ffn_gated", "ff_proj_factor": 2.2}
    before, after = FAMILIES[family](**extra), FAMILIES[family](**extra | {key: value})
    path, *texts = before.class_path(), *(json.dumps(model.model_config.to_dict()) for model in (before, after))
    assert any(part(path, texts[0]) != part(path, texts[1]) for part in (initialization, forward_pass))


def initialization(path, text):
    """Program that computes the initial values, as text."""
    return traced_initialization(path, text)[0]


@functools.cache
def traced_initialization(path, text):
    """Program that computes the initial values, as text, and their shapes."""
    module = build_model(with_config(path, text))
    jaxpr, shapes = jax.make_jaxpr(lambda: init_model(module, jax.random.key(0)), return_shape=True)()
    return str(jaxpr), shapes


@functools.cache
def forward_pass(path, text):
    """Program of the forward pass, as text."""
    forward = functools.partial(apply_model, build_model(with_config(path, text)))
    tokens, borders = (jax.ShapeDtypeStruct((2, 16), dtype) for dtype in (jnp.int32, jnp.bool))
    return str(jax.make_jaxpr(forward)(traced_initialization(path, text)[1], tokens, borders))


@families
@pytest.mark.parametrize("add_embedding_dropout", [False, True], ids=["branches", "embedding too"])
def test_dropout_is_only_active_in_training(family, add_embedding_dropout):
    rate = {"dropout_rate" if family == "llama" else "dropout": 0.5}
    model = FAMILIES[family](add_embedding_dropout=add_embedding_dropout, **rate)
    keys = [jax.random.key(1), jax.random.key(2)]
    first, second = (outputs(model, some_tokens(), key=key) for key in keys)
    assert jnp.any(first != second)
    plain = FAMILIES[family]()
    np.testing.assert_array_equal(outputs(model, some_tokens()), outputs(plain, some_tokens()))


@pytest.mark.parametrize("key", ["remat", "fsdp_modules"])
def test_an_unknown_module_class_is_refused_with_the_known_ones(key):
    model = FAMILIES["v1"]()
    model.parallel = ParallelConfig(**{key: ["mLSTMBlok"]})
    with pytest.raises(ConfigError, match=rf"parallel\.{key}='mLSTMBlok'.*Did you mean 'mLSTMBlock'"):
        list_parameters(model)


def test_tied_weights_have_a_single_table():
    paths = [parameter.path for parameter in list_parameters(FAMILIES["v1"](tie_weights=True))]
    assert "token_embedding.embedding" in paths and "lm_head.out_dense.kernel" not in paths


def test_initial_standard_deviations_follow_their_formulas():
    model = FAMILIES["v1"](embedding_dim=256, num_heads=4, num_blocks=3, vocab_size=512)
    values = traverse_util.flatten_dict(jax.jit(lambda: init_model(build_model(model), jax.random.key(0)))(), sep=".")
    small, wang = math.sqrt(2 / (5 * 256)), 2 / (3 * math.sqrt(256))
    expected = json.dumps({"token_embedding.embedding": small, "blocks.ffn_res_block.ffn.proj_down.kernel": wang})
    for path, std in json.loads(expected).items():
        np.testing.assert_allclose(values[path].std(), std, rtol=0.02, err_msg=path)
    assert not values["blocks.xlstm_res_block.xlstm.dense_o.kernel"].any()
