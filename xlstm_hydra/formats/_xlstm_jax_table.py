"""Tables of all fields that xlstm-jax recorded with a checkpoint, in the formats of all xlstm-jax commits.

Paths are paths in the metadata file. `default` is the behavior of earlier commits, which did not have the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ._table_reader import REQUIRED, Derive, Field, Table, copy_of, derived, maps_to, no_counterpart, supported_only
from ._value_types import anything, boolean, classes, dtype, from_repr, integer, list_of, null, number, optional, string

MODEL = "model.model_config"
BLOCK = f"{MODEL}.mlstm_block"
LAYER = f"{BLOCK}.mlstm"
CELL = f"{LAYER}.mlstm_cell"
FEED_FORWARD = f"{BLOCK}.feedforward"

PUBLISHED_CLASSES = {
    "xlstm_jax.models.xlstm_parallel.xlstm_lm_model.xLSTMLMModel": {
        "mlstm": "mLSTMConfig",
        "mlstm_v1": "mLSTMv1Config",
    },
    "xlstm_jax.models.llama.llama.LlamaTransformer": {"": "LlamaConfig"},
}
"""For each published model class, our config classes by layer type."""

_UNSET = -1
"""Value of a copied size that xlstm-jax has not set yet."""

_IN_V1 = "not used by mlstm_v1"
_IN_V0 = "not used by the layer type mlstm"
_SLSTM = "xlstm-jax had no sLSTM blocks that could be trained in parallel."
_SPEED = "it affects only speed"
_DISPLAY = "it affects only the output"


def bias_range(data: Any) -> Any:
    """Read the initial bias of the gates: a number, [low, high], or null."""
    data = None if isinstance(data, str) and data == "None" else from_repr(data)
    return list_of(number)(data) if isinstance(data, list | tuple) else optional(number)(data)


def _rounded(section: str) -> Derive:
    def width(values: Mapping[str, Any]) -> int:
        multiple = values[f"{section}.round_proj_up_to_multiple_of"]
        units = values[f"{section}.proj_factor"] * values[f"{MODEL}.embedding_dim"] / multiple
        return (math.ceil if values[f"{section}.round_proj_up_dim_up"] else math.floor)(units) * multiple

    return width


def _width(section: str) -> Field:
    """Return an entry for the inner width recorded in a section. The initial width may have been computed from an
    embedding dimension that was not set yet."""
    width = _rounded(section)

    def initial(values: Mapping[str, Any]) -> tuple[int, ...]:
        return (_UNSET, 0, width({**values, f"{MODEL}.embedding_dim": _UNSET}))

    return derived(width, integer, initial)


def _num_blocks(values: Mapping[str, Any]) -> int:
    return values[f"{MODEL}.num_blocks"]


def _block_map(values: Mapping[str, Any]) -> str:
    return ",".join(["0"] * min(_num_blocks(values), 10_000))


def _copies(*names: str, kind: Any, initial: tuple[Any, ...] = ()) -> Table:
    return {name: copy_of(f"{MODEL}.{name}", kind, REQUIRED, *initial) for name in names}


PARALLEL: Table = {
    **{f"{name}_axis_size": maps_to(f"{name}_axis_size", integer) for name in ("data", "fsdp", "pipeline", "model")},
    **{f"{name}_axis_name": maps_to(f"{name}_axis_name", string) for name in ("data", "fsdp", "pipeline", "model")},
    "remat": maps_to("remat", list_of(string)),
    "fsdp_modules": maps_to("fsdp_modules", list_of(string)),
    "fsdp_min_weight_size": maps_to("fsdp_min_weight_size", integer),
    "fsdp_gather_dtype": maps_to("fsdp_gather_dtype", optional(dtype), default=None),
    "fsdp_grad_scatter_dtype": maps_to("fsdp_grad_scatter_dtype", optional(dtype), default=None),
    "tp_async_dense": maps_to("tp_async_dense", boolean),
}

LANGUAGE_MODEL: Table = {
    **{name: maps_to(name, integer) for name in ("vocab_size", "embedding_dim", "num_blocks", "context_length")},
    "dtype": maps_to("dtype", dtype),
    "bias": maps_to("bias", boolean),
    "dropout": maps_to("dropout", number),
    "scan_blocks": maps_to("scan_blocks", boolean),
    "add_embedding_dropout": maps_to("add_embedding_dropout", boolean),
    "lm_head_dtype": maps_to("lm_head_dtype", dtype, default="float32"),
    "logits_soft_cap": maps_to("logits_soft_cap", optional(number), default=None),
    "norm_type": maps_to("norm_type", string, default="layernorm"),
    "norm_eps": maps_to("norm_eps", number, default=1e-6),
    "init_distribution_embed": maps_to("init_distribution_embed", string, default="normal"),
    "init_distribution_out": maps_to("init_distribution_out", string, default="normal"),
    "tie_weights": no_counterpart(boolean, False, "it had no effect: embedding and head had separate parameters"),
    "add_post_blocks_norm": no_counterpart(boolean, True, "it had no effect: there was always a norm before the head"),
    "weight_decay_on_embedding": no_counterpart(boolean, False, "it had no effect: the embedding had no weight decay"),
    "slstm_block": supported_only(optional(anything), None, _SLSTM),
    "slstm_at": supported_only(list_of(integer), [], _SLSTM),
    "_block_map": derived(_block_map, string),
}

BLOCKS: Table = {
    "add_post_norm": maps_to("add_post_norm", boolean, default=False),
    "_num_blocks": derived(_num_blocks, integer, lambda _: (1,)),
    "_block_idx": no_counterpart(null, None, ""),
}

_LAYERS: Table = {
    "num_heads": maps_to("num_heads", integer),
    "layer_type": Field(kind=string, default="mlstm"),
    **_copies("embedding_dim", "context_length", kind=integer, initial=(_UNSET,)),
    **_copies("bias", kind=boolean),
    **_copies("dropout", kind=number),
    **_copies("dtype", kind=dtype),
    "norm_type": copy_of(f"{MODEL}.norm_type", string, default=None),
    "qk_dim_factor": maps_to("qk_dim_factor", number, default=1.0),
    "v_dim_factor": maps_to("v_dim_factor", number, default=1.0),
    "init_distribution": maps_to("init_distribution", string, default="normal"),
    "output_init_fn": maps_to("output_init_fn", string, default="wang"),
    "debug_cell": no_counterpart(boolean, False, _DISPLAY),
    "_proj_up_dim": _width(LAYER),
    "_inner_embedding_dim": _width(LAYER),
    "_num_blocks": derived(_num_blocks, integer, lambda _: (1,)),
    "_block_idx": no_counterpart(null, None, "", default=None),
}

_CELLS: Table = {
    "embedding_dim": _width(LAYER),
    "num_heads": copy_of(f"{LAYER}.num_heads", integer, REQUIRED, _UNSET),
    **_copies("context_length", kind=integer, initial=(_UNSET,)),
    **_copies("dtype", kind=dtype),
    "gate_dtype": maps_to("gate_dtype", dtype, default=None),
    "gate_soft_cap": maps_to("gate_soft_cap", optional(number), default=None),
    "igate_bias_init_range": maps_to("igate_bias_init_range", bias_range, default=None),
    "fgate_bias_init_range": maps_to("fgate_bias_init_range", bias_range, default=[3.0, 6.0]),
    "add_qk_norm": maps_to("add_qk_norm", boolean, default=False),
    "norm_eps": maps_to("cell_norm_eps", number, default=1e-5),
    "reset_at_document_boundaries": maps_to("reset_at_document_boundaries", boolean, default=False),
    "reset_fgate_value": maps_to("reset_fgate_value", number, default=-25.0),
}

LAYERS: Mapping[str, Table] = {
    "mlstm": {
        **_LAYERS,
        "proj_factor": maps_to("proj_factor", number),
        "round_proj_up_dim_up": maps_to("round_proj_up_dim_up", boolean),
        "round_proj_up_to_multiple_of": maps_to("round_proj_up_to_multiple_of", integer),
        "conv1d_kernel_size": maps_to("conv1d_kernel_size", integer),
        "qkv_proj_blocksize": maps_to("qkv_proj_blocksize", integer),
        "vmap_qk": maps_to("vmap_qk", boolean),
        "gate_input": maps_to("gate_input", string, default="qkv"),
    },
    "mlstm_v1": {
        **_LAYERS,
        "proj_factor": no_counterpart(number, 2.0, _IN_V1),
        "round_proj_up_dim_up": no_counterpart(boolean, True, _IN_V1),
        "round_proj_up_to_multiple_of": no_counterpart(integer, 64, _IN_V1),
        "conv1d_kernel_size": no_counterpart(integer, 4, _IN_V1),
        "qkv_proj_blocksize": no_counterpart(integer, 4, _IN_V1),
        "vmap_qk": no_counterpart(boolean, False, _IN_V1),
        "gate_input": no_counterpart(string, "qkv", _IN_V1, default="qkv"),
    },
}

CELLS: Mapping[str, Table] = {
    "mlstm": {
        **_CELLS,
        "norm_type": maps_to("cell_norm_type", string, default="layernorm"),
        "norm_type_v1": no_counterpart(string, "layernorm", _IN_V0, default=None),
        "gate_linear_headwise": maps_to("gate_linear_headwise", boolean, default=False),
    },
    "mlstm_v1": {
        **_CELLS,
        "norm_type": copy_of(f"{MODEL}.norm_type", string, default=None),
        "norm_type_v1": maps_to("cell_norm_type_v1", string, default="layernorm"),
        "gate_linear_headwise": no_counterpart(boolean, False, _IN_V1, default=None),
    },
}

FEED_FORWARDS: Table = {
    "proj_factor": maps_to("proj_factor", number),
    "round_proj_up_dim_up": maps_to("round_proj_up_dim_up", boolean),
    "round_proj_up_to_multiple_of": maps_to("round_proj_up_to_multiple_of", integer),
    "ff_type": maps_to("ff_type", string),
    "act_fn": maps_to("act_fn", string),
    "dtype": maps_to("ff_dtype", dtype),
    **_copies("embedding_dim", kind=integer, initial=(_UNSET,)),
    **_copies("bias", kind=boolean),
    **_copies("dropout", kind=number),
    "init_distribution": copy_of(f"{LAYER}.init_distribution", string),
    "output_init_fn": copy_of(f"{LAYER}.output_init_fn", string),
    "_proj_up_dim": _width(FEED_FORWARD),
    "_num_blocks": derived(_num_blocks, integer, lambda _: (1,)),
}

FEED_FORWARDS_V0: Table = {
    **FEED_FORWARDS,
    "proj_factor": maps_to("ff_proj_factor", number),
    "round_proj_up_dim_up": maps_to("ff_round_proj_up_dim_up", boolean),
    "round_proj_up_to_multiple_of": maps_to("ff_round_proj_up_to_multiple_of", integer),
}
"""The feed-forward fields for the layer type mlstm, for which our field names have the prefix ff_."""

NO_FEED_FORWARD = maps_to("ff_type", optional(string), default=None)
"""Entry for a missing feed-forward section."""

LLAMA: Table = {
    **{name: maps_to(name, integer) for name in ("vocab_size", "embedding_dim", "num_blocks", "head_dim")},
    "ffn_multiple_of": maps_to("ffn_multiple_of", integer),
    **{name: maps_to(name, number) for name in ("theta", "ffn_dim_multiplier", "dropout_rate")},
    **{name: maps_to(name, boolean) for name in ("qk_norm", "use_bias", "scan_blocks", "add_embedding_dropout")},
    "dtype": maps_to("dtype", dtype),
    "causal": maps_to("causal", boolean, default=True),
    "mask_across_document_boundaries": maps_to("mask_across_document_boundaries", boolean, default=False),
    "attention_backend": maps_to("attention_backend", string, default="xla"),
    "logits_soft_cap": maps_to("logits_soft_cap", optional(number), default=None),
}

_NORMALISER = "Here, the normalizer of the cell is at least exp(-m). Other lower bounds give a different function."
_ROUNDING = "it was the data type of a kernel; in xlstm-hydra, each kernel chooses its own"


def _option(kind: Any, usual: Any, why: str = _SPEED) -> Any:
    return no_counterpart(kind, usual, why, default=None)


_RECURRENT: Table = {
    "eps": maps_to("cell_eps", number, default=1e-6),
    "state_dtype": _option(optional(dtype), None, _ROUNDING),
    "use_scan": _option(boolean, False),
}

BACKEND: Table = {"name": Field(kind=string), "_registry": Field(kind=classes)}

BACKENDS: Mapping[str, tuple[str, str, Table]] = {
    "parallel_stabilized": (
        "quadratic",
        "mLSTMBackendParallelConfig",
        {"context_length": copy_of(f"{MODEL}.context_length", integer, None, _UNSET)},
    ),
    "fwbw_stabilized": (
        "chunkwise",
        "mLSTMBackendFwbwConfig",
        {
            "chunk_size": maps_to("chunk_size", optional(integer), default=None),
            "stabilize_correctly": supported_only(boolean, True, _NORMALISER, default=False),
            "return_state": _option(boolean, False),
            "use_initial_state": _option(boolean, False),
            **{f"keep_{name}": _option(boolean, name == "gates") for name in ("G", "gates", "M", "c")},
        },
    ),
    "triton_kernels": (
        "chunkwise",
        "mLSTMBackendTritonConfig",
        {
            "chunk_size": maps_to("chunk_size", integer, default=None),
            "stabilize_correctly": supported_only(boolean, True, _NORMALISER, default=True),
            "norm_val": supported_only(number, 1.0, _NORMALISER, default=1.0),
            "eps": maps_to("cell_eps", number, default=1e-6),
            "autocast_dtype": _option(optional(dtype), None, _ROUNDING),
            "reduce_slicing": _option(boolean, True),
            "backend_name": no_counterpart(string, "", _SPEED, default=""),
        },
    ),
    "recurrent": (
        "recurrent",
        "mLSTMBackendRecurrentConfig",
        {**_RECURRENT, "context_length": copy_of(f"{MODEL}.context_length", integer, None, _UNSET)},
    ),
    "recurrent_triton": (
        "recurrent",
        "mLSTMBackendRecurrentTritonConfig",
        {**_RECURRENT, "backend_name": no_counterpart(string, "", _SPEED, default="")},
    ),
}
"""For each published backend of the cell: our backend, the xlstm-jax class of its settings, and the table of the
settings."""
