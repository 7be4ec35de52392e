"""Checkpoints written by xlstm-jax, from `../shared/reference`, converted to our configs and parameters."""

import json
import os
import pathlib

import numpy as np

from xlstm_hydra.configs import LlamaConfig, ModelConfig, mLSTMConfig, mLSTMv1Config
from xlstm_hydra.models import Llama, mLSTM, mLSTMv1

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHECKPOINTS = pathlib.Path(os.environ.get("XLSTM_REFERENCE", ROOT.parent / "shared" / "reference")) / "checkpoints"

_LAYER = ("num_heads", "qk_dim_factor", "v_dim_factor", "init_distribution", "output_init_fn")
_V0_LAYER = (
    *("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of", "conv1d_kernel_size"),
    *("qkv_proj_blocksize", "vmap_qk", "gate_input"),
)
_CELL = (
    *("gate_dtype", "gate_soft_cap", "igate_bias_init_range", "fgate_bias_init_range"),
    *("add_qk_norm", "reset_at_document_boundaries", "reset_fgate_value"),
)
_TOP = (
    *(
        "vocab_size",
        "embedding_dim",
        "num_blocks",
        "context_length",
        "dtype",
        "lm_head_dtype",
        "logits_soft_cap",
        "bias",
    ),
    *("dropout", "scan_blocks", "norm_type", "norm_eps", "init_distribution_embed", "init_distribution_out"),
)


def load_model(case: str, **changes) -> ModelConfig:
    """The model config of a reference checkpoint, with our flat names."""
    saved = json.loads((CHECKPOINTS / case / "config.json").read_text())["model_config"]
    if "mlstm_block" not in saved:
        context = json.loads((CHECKPOINTS / case / "run.json").read_text())["context"]
        fields = {key: value for key, value in saved.items() if key not in ("__class__", "parallel")}
        return ModelConfig(Llama, model_config=LlamaConfig(**fields | {"context_length": context} | changes))
    layer = saved["mlstm_block"]["mlstm"]
    cell, feed_forward = layer["mlstm_cell"], saved["mlstm_block"]["feedforward"]
    fields = {key: saved[key] for key in _TOP}
    fields |= {key: layer[key] for key in _LAYER} | {key: cell[key] for key in _CELL}
    fields |= {
        "cell_norm_eps": cell["norm_eps"],
        "add_post_norm": saved["mlstm_block"]["add_post_norm"],
    }
    if changes.get("backend", "chunkwise") == "chunkwise":
        fields["chunk_size"] = 8
    if layer["layer_type"] == "mlstm":
        fields |= {key: layer[key] for key in _V0_LAYER}
        fields |= {"gate_linear_headwise": cell["gate_linear_headwise"], "cell_norm_type": saved["norm_type"]}
        return ModelConfig(mLSTM, model_config=mLSTMConfig(**fields | changes))
    names = ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of", "ff_type", "act_fn")
    fields |= {key: feed_forward[key] for key in names} | {"ff_dtype": feed_forward["dtype"]}
    return ModelConfig(
        mLSTMv1, model_config=mLSTMv1Config(**fields | {"cell_norm_type_v1": cell["norm_type_v1"]} | changes)
    )


def load_params(case: str, model: ModelConfig, file: str = "params.npz") -> dict:
    """The arrays of a reference checkpoint (parameters or gradients) as our parameter tree. Tensor-parallel size 1."""
    tree: dict = {}
    put = _put_llama if isinstance(model.model_config, LlamaConfig) else _put
    for path, array in sorted(np.load(CHECKPOINTS / case / file).items()):
        put(tree, path.split("."), array, model.model_config)
    return tree


def _put_llama(tree: dict, path: list[str], array: np.ndarray, config) -> None:
    """The scanned parameters of Llama. xlstm-jax has two array axes for heads and head width, and we have one."""
    names = {"block": "blocks", "pre_norm": f"{path[-3]}_norm"}
    keep = [names.get(name, name) for name in path if name not in ("sharded", "block_stack")]
    layers = array.shape[:1] if "block" in path else ()
    if path[-2] == "dense_out":
        array = array.reshape(*layers, -1, config.embedding_dim)
    elif path[-2].startswith("dense_"):
        array = array.reshape(*layers, config.embedding_dim, -1)
    _set(tree, keep, array.squeeze(0) if "sharded" in path else array)


def _put(tree: dict, path: list[str], array: np.ndarray, config) -> None:
    stacked = "block" in path
    if "sharded" in path:
        array = array.squeeze(1 if stacked else 0)
    keep = [
        name
        for name in path
        if name not in ("sharded", "Dense_0", "xlstm_block_stack", "inner_layer", "mlstm_cell", "conv")
    ]
    if "blocks" in keep:
        at = keep.index("blocks")
        keep[at : at + 2] = ["blocks"] if stacked else [f"blocks_{keep[at + 1]}"]
    if keep[-2] in ("igate", "fgate") and keep[-1] == "kernel" and isinstance(config, mLSTMConfig):
        if not config.gate_linear_headwise:
            names = ("q", "k", "v") if config.gate_input == "qkv" else ("x",)
            sizes = (
                (config.qk_dim(), config.qk_dim(), config.v_dim()) if config.gate_input == "qkv" else (array.shape[0],)
            )
            parts = np.split(array, np.cumsum(sizes)[:-1], axis=0)
            for name, part in zip(names, parts, strict=True):
                _set(tree, [*keep[:-1], f"{name}_kernel"], part)
            return
    _set(tree, keep, array)


def _set(tree: dict, path: list[str], array: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = array
