"""What every field is that xlstm-jax has recorded beside a checkpoint, as tables: the formats of all its commits.

Paths are those in the file. `before` is what a field was at the commits that did not have it yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ._fields import (
    REQUIRED,
    Derive,
    Field,
    Table,
    absent,
    anything,
    classes,
    dtype,
    flag,
    follows,
    integer,
    listed,
    number,
    only,
    optional,
    same,
    text,
    to,
    without,
    written,
)

MODEL = "model.model_config"
BLOCK = f"{MODEL}.mlstm_block"
LAYER = f"{BLOCK}.mlstm"
CELL = f"{LAYER}.mlstm_cell"
FEED_FORWARD = f"{BLOCK}.feedforward"

CLASSES = {
    "xlstm_jax.models.xlstm_parallel.xlstm_lm_model.xLSTMLMModel": {"mlstm": "mLSTM", "mlstm_v1": "mLSTMv1"},
    "xlstm_jax.models.llama.llama.LlamaTransformer": {"": "Llama"},
}
"""The published model classes, and which of ours they are, by the type of their layer."""

_UNSET = -1
"""The value of sizes that are copied from elsewhere, before they are."""

_IN_V1 = "mlstm_v1 has no use for it"
_IN_V0 = "layer type mlstm has no use for it"
_SLSTM = "xlstm-jax had no sLSTM blocks that could be trained in parallel."
_SPEED = "it says how fast, not what is computed"
_DISPLAY = "it says what is shown, not what is computed"


def bias_range(data: Any) -> Any:
    """Initial bias of the gates: a number, [low, high], or null."""
    data = None if isinstance(data, str) and data == "None" else written(data)
    return listed(number)(data) if isinstance(data, list | tuple) else optional(number)(data)


def _rounded(section: str) -> Derive:
    def width(values: Mapping[str, Any]) -> int:
        multiple = values[f"{section}.round_proj_up_to_multiple_of"]
        units = values[f"{section}.proj_factor"] * values[f"{MODEL}.embedding_dim"] / multiple
        return (math.ceil if values[f"{section}.round_proj_up_dim_up"] else math.floor)(units) * multiple

    return width


def _width(section: str) -> Field:
    """A width inside a section, which xlstm-jax first computes while the width of the model is unset."""
    width = _rounded(section)

    def initial(values: Mapping[str, Any]) -> tuple[int, ...]:
        return (_UNSET, 0, width({**values, f"{MODEL}.embedding_dim": _UNSET}))

    return follows(width, integer, initial)


def _num_blocks(values: Mapping[str, Any]) -> int:
    return values[f"{MODEL}.num_blocks"]


def _block_map(values: Mapping[str, Any]) -> str:
    return ",".join(["0"] * min(_num_blocks(values), 10_000))


def _copies(*names: str, kind: Any, initial: tuple[Any, ...] = ()) -> Table:
    return {name: same(f"{MODEL}.{name}", kind, REQUIRED, *initial) for name in names}


PARALLEL: Table = {
    **{f"{name}_axis_size": to(f"{name}_axis_size", integer) for name in ("data", "fsdp", "pipeline", "model")},
    **{f"{name}_axis_name": to(f"{name}_axis_name", text) for name in ("data", "fsdp", "pipeline", "model")},
    "remat": to("remat", listed(text)),
    "fsdp_modules": to("fsdp_modules", listed(text)),
    "fsdp_min_weight_size": to("fsdp_min_weight_size", integer),
    "fsdp_gather_dtype": to("fsdp_gather_dtype", optional(dtype), before=None),
    "fsdp_grad_scatter_dtype": to("fsdp_grad_scatter_dtype", optional(dtype), before=None),
    "tp_async_dense": to("tp_async_dense", flag),
}

LANGUAGE_MODEL: Table = {
    **{name: to(name, integer) for name in ("vocab_size", "embedding_dim", "num_blocks", "context_length")},
    "dtype": to("dtype", dtype),
    "bias": to("bias", flag),
    "dropout": to("dropout", number),
    "scan_blocks": to("scan_blocks", flag),
    "add_embedding_dropout": to("add_embedding_dropout", flag),
    "lm_head_dtype": to("lm_head_dtype", dtype, before="float32"),
    "logits_soft_cap": to("logits_soft_cap", optional(number), before=None),
    "norm_type": to("norm_type", text, before="layernorm"),
    "norm_eps": to("norm_eps", number, before=1e-6),
    "init_distribution_embed": to("init_distribution_embed", text, before="normal"),
    "init_distribution_out": to("init_distribution_out", text, before="normal"),
    "tie_weights": without(flag, False, "it had no effect: embedding and head were two parameters"),
    "add_post_blocks_norm": without(flag, True, "it had no effect: the norm before the head was there"),
    "weight_decay_on_embedding": without(flag, False, "it had no effect: the embedding did not decay"),
    "slstm_block": only(optional(anything), None, _SLSTM),
    "slstm_at": only(listed(integer), [], _SLSTM),
    "_block_map": follows(_block_map, text),
}

BLOCKS: Table = {
    "add_post_norm": to("add_post_norm", flag, before=False),
    "_num_blocks": follows(_num_blocks, integer, lambda _: (1,)),
    "_block_idx": without(absent, None, ""),
}

_LAYERS: Table = {
    "num_heads": to("num_heads", integer),
    "layer_type": Field(kind=text, before="mlstm"),
    **_copies("embedding_dim", "context_length", kind=integer, initial=(_UNSET,)),
    **_copies("bias", kind=flag),
    **_copies("dropout", kind=number),
    **_copies("dtype", kind=dtype),
    "norm_type": same(f"{MODEL}.norm_type", text, before=None),
    "qk_dim_factor": to("qk_dim_factor", number, before=1.0),
    "v_dim_factor": to("v_dim_factor", number, before=1.0),
    "init_distribution": to("init_distribution", text, before="normal"),
    "output_init_fn": to("output_init_fn", text, before="wang"),
    "debug_cell": without(flag, False, _DISPLAY),
    "_proj_up_dim": _width(LAYER),
    "_inner_embedding_dim": _width(LAYER),
    "_num_blocks": follows(_num_blocks, integer, lambda _: (1,)),
    "_block_idx": without(absent, None, "", before=None),
}

_CELLS: Table = {
    "embedding_dim": _width(LAYER),
    "num_heads": same(f"{LAYER}.num_heads", integer, REQUIRED, _UNSET),
    **_copies("context_length", kind=integer, initial=(_UNSET,)),
    **_copies("dtype", kind=dtype),
    "gate_dtype": to("gate_dtype", dtype, before=None),
    "gate_soft_cap": to("gate_soft_cap", optional(number), before=None),
    "igate_bias_init_range": to("igate_bias_init_range", bias_range, before=None),
    "fgate_bias_init_range": to("fgate_bias_init_range", bias_range, before=[3.0, 6.0]),
    "add_qk_norm": to("add_qk_norm", flag, before=False),
    "norm_eps": to("cell_norm_eps", number, before=1e-5),
    "reset_at_document_boundaries": to("reset_at_document_boundaries", flag, before=False),
    "reset_fgate_value": to("reset_fgate_value", number, before=-25.0),
}

LAYERS: Mapping[str, Table] = {
    "mlstm": {
        **_LAYERS,
        "proj_factor": to("proj_factor", number),
        "round_proj_up_dim_up": to("round_proj_up_dim_up", flag),
        "round_proj_up_to_multiple_of": to("round_proj_up_to_multiple_of", integer),
        "conv1d_kernel_size": to("conv1d_kernel_size", integer),
        "qkv_proj_blocksize": to("qkv_proj_blocksize", integer),
        "vmap_qk": to("vmap_qk", flag),
        "gate_input": to("gate_input", text, before="qkv"),
    },
    "mlstm_v1": {
        **_LAYERS,
        "proj_factor": without(number, 2.0, _IN_V1),
        "round_proj_up_dim_up": without(flag, True, _IN_V1),
        "round_proj_up_to_multiple_of": without(integer, 64, _IN_V1),
        "conv1d_kernel_size": without(integer, 4, _IN_V1),
        "qkv_proj_blocksize": without(integer, 4, _IN_V1),
        "vmap_qk": without(flag, False, _IN_V1),
        "gate_input": without(text, "qkv", _IN_V1, before="qkv"),
    },
}

CELLS: Mapping[str, Table] = {
    "mlstm": {
        **_CELLS,
        "norm_type": to("cell_norm_type", text, before="layernorm"),
        "norm_type_v1": without(text, "layernorm", _IN_V0, before=None),
        "gate_linear_headwise": to("gate_linear_headwise", flag, before=False),
    },
    "mlstm_v1": {
        **_CELLS,
        "norm_type": same(f"{MODEL}.norm_type", text, before=None),
        "norm_type_v1": to("cell_norm_type_v1", text, before="layernorm"),
        "gate_linear_headwise": without(flag, False, _IN_V1, before=None),
    },
}

FEED_FORWARDS: Table = {
    "proj_factor": to("proj_factor", number),
    "round_proj_up_dim_up": to("round_proj_up_dim_up", flag),
    "round_proj_up_to_multiple_of": to("round_proj_up_to_multiple_of", integer),
    "ff_type": to("ff_type", text),
    "act_fn": to("act_fn", text),
    "dtype": to("ff_dtype", dtype),
    **_copies("embedding_dim", kind=integer, initial=(_UNSET,)),
    **_copies("bias", kind=flag),
    **_copies("dropout", kind=number),
    "init_distribution": same(f"{LAYER}.init_distribution", text),
    "output_init_fn": same(f"{LAYER}.output_init_fn", text),
    "_proj_up_dim": _width(FEED_FORWARD),
    "_num_blocks": follows(_num_blocks, integer, lambda _: (1,)),
}

FEED_FORWARDS_V0: Table = {
    **FEED_FORWARDS,
    "proj_factor": to("ff_proj_factor", number),
    "round_proj_up_dim_up": to("ff_round_proj_up_dim_up", flag),
    "round_proj_up_to_multiple_of": to("ff_round_proj_up_to_multiple_of", integer),
}
"""The same fields beside layer type mlstm, whose own width has the plain names."""

NO_FEED_FORWARD = to("ff_type", optional(text), before=None)
"""The field of ours that expresses that there is no such section."""

LLAMA: Table = {
    **{name: to(name, integer) for name in ("vocab_size", "embedding_dim", "num_blocks", "head_dim")},
    "ffn_multiple_of": to("ffn_multiple_of", integer),
    **{name: to(name, number) for name in ("theta", "ffn_dim_multiplier", "dropout_rate")},
    **{name: to(name, flag) for name in ("qk_norm", "use_bias", "scan_blocks", "add_embedding_dropout")},
    "dtype": to("dtype", dtype),
    "causal": to("causal", flag, before=True),
    "mask_across_document_boundaries": to("mask_across_document_boundaries", flag, before=False),
    "attention_backend": to("attention_backend", text, before="xla"),
    "logits_soft_cap": to("logits_soft_cap", optional(number), before=None),
}

_NORMALISER = "The cell's normaliser is at least exp(-m) here, and other limits are another function."
_ROUNDING = "it is the type that a kernel computed in, which is the kernel's own here"


def _option(kind: Any, usual: Any, why: str = _SPEED) -> Any:
    return without(kind, usual, why, before=None)


_RECURRENT: Table = {
    "eps": to("cell_eps", number, before=1e-6),
    "state_dtype": _option(optional(dtype), None, _ROUNDING),
    "use_scan": _option(flag, False),
}

BACKEND: Table = {"name": Field(kind=text), "_registry": Field(kind=classes)}

BACKENDS: Mapping[str, tuple[str, str, Table]] = {
    "parallel_stabilized": (
        "quadratic",
        "mLSTMBackendParallelConfig",
        {"context_length": same(f"{MODEL}.context_length", integer, None, _UNSET)},
    ),
    "fwbw_stabilized": (
        "chunkwise",
        "mLSTMBackendFwbwConfig",
        {
            "chunk_size": to("chunk_size", optional(integer), before=None),
            "stabilize_correctly": only(flag, True, _NORMALISER, before=False),
            "return_state": _option(flag, False),
            "use_initial_state": _option(flag, False),
            **{f"keep_{name}": _option(flag, name == "gates") for name in ("G", "gates", "M", "c")},
        },
    ),
    "triton_kernels": (
        "chunkwise",
        "mLSTMBackendTritonConfig",
        {
            "chunk_size": to("chunk_size", integer, before=None),
            "stabilize_correctly": only(flag, True, _NORMALISER, before=True),
            "norm_val": only(number, 1.0, _NORMALISER, before=1.0),
            "eps": to("cell_eps", number, before=1e-6),
            "autocast_dtype": _option(optional(dtype), None, _ROUNDING),
            "reduce_slicing": _option(flag, True),
            "backend_name": without(text, "", _SPEED, before=""),
        },
    ),
    "recurrent": (
        "recurrent",
        "mLSTMBackendRecurrentConfig",
        {**_RECURRENT, "context_length": same(f"{MODEL}.context_length", integer, None, _UNSET)},
    ),
    "recurrent_triton": (
        "recurrent",
        "mLSTMBackendRecurrentTritonConfig",
        {**_RECURRENT, "backend_name": without(text, "", _SPEED, before="")},
    ),
}
"""For each published backend of the cell: ours, the class of its settings, and the settings."""
