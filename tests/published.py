"""Invented metadata in the formats that xlstm-jax has written: a base of plain values, and how each era wrote them."""

import copy
import json

PARALLEL = {
    **{"data_axis_size": 2, "fsdp_axis_size": -1, "pipeline_axis_size": 1, "model_axis_size": 4},
    **{"data_axis_name": "replica", "fsdp_axis_name": "shärd", "pipeline_axis_name": "pipe", "model_axis_name": "tp"},
    **{"remat": ("mLSTMBlock",), "fsdp_modules": ("Embed", "LMHead"), "fsdp_min_weight_size": 100},
    **{"fsdp_gather_dtype": "bfloat16", "fsdp_grad_scatter_dtype": None, "tp_async_dense": True},
}

_CELL = {
    **{"context_length": 96, "embedding_dim": 128, "num_heads": 4, "dtype": "bfloat16", "norm_eps": 1e-5},
    **{"norm_type": "rmsnorm", "norm_type_v1": "layernorm", "gate_dtype": "float32", "gate_soft_cap": 15},
    **{"gate_linear_headwise": True, "igate_bias_init_range": [-10, -2.5], "fgate_bias_init_range": [2, 5.0]},
    **{"add_qk_norm": True, "reset_at_document_boundaries": True, "reset_fgate_value": -30, "parallel": None},
    "backend": {"name": "triton_kernels", "kwargs": {"chunk_size": 32}, "_registry": {}},
}
_LAYER = {
    **{"proj_factor": 2, "round_proj_up_dim_up": False, "round_proj_up_to_multiple_of": 32, "_proj_up_dim": 128},
    **{"conv1d_kernel_size": 3, "qkv_proj_blocksize": 8, "num_heads": 4, "vmap_qk": True, "gate_input": "x_mlstm"},
    **{"init_distribution": "uniform", "output_init_fn": "wang2", "layer_type": "mlstm", "norm_type": "rmsnorm"},
    **{"qk_dim_factor": 0.5, "v_dim_factor": 1, "embedding_dim": 64, "bias": True, "dropout": 0.25},
    **{"context_length": 96, "dtype": "bfloat16", "parallel": PARALLEL, "debug_cell": False, "_num_blocks": 3},
    **{"_inner_embedding_dim": 128, "mlstm_cell": _CELL, "_block_idx": None},
}
FEED_FORWARD = {
    **{"proj_factor": 2.5, "round_proj_up_dim_up": True, "round_proj_up_to_multiple_of": 64, "_proj_up_dim": 192},
    **{"ff_type": "ffn", "act_fn": "gelu", "dtype": "float32", "embedding_dim": 64, "bias": True, "dropout": 0.25},
    **{"init_distribution": "uniform", "output_init_fn": "wang2", "_num_blocks": 3, "parallel": PARALLEL},
}
_MODEL = {
    **{"vocab_size": 300, "embedding_dim": 64, "num_blocks": 3, "context_length": 96, "_block_map": "0,0,0"},
    **{"tie_weights": False, "weight_decay_on_embedding": False, "add_embedding_dropout": True, "dropout": 0.25},
    **{"add_post_blocks_norm": True, "bias": True, "scan_blocks": False, "dtype": "bfloat16", "norm_eps": 1e-4},
    **{"norm_type": "rmsnorm", "logits_soft_cap": 20.5, "lm_head_dtype": "bfloat16", "slstm_block": None},
    **{"init_distribution_embed": "uniform", "init_distribution_out": "truncated_normal", "slstm_at": []},
    "mlstm_block": {
        **{"_num_blocks": 3, "_block_idx": None, "add_post_norm": True, "parallel": PARALLEL, "feedforward": None},
        "mlstm": _LAYER,
    },
    "parallel": PARALLEL,
}
_LLAMA = {
    **{"vocab_size": 300, "embedding_dim": 64, "num_blocks": 3, "head_dim": 16, "qk_norm": True, "causal": True},
    **{"theta": 10000, "ffn_multiple_of": 32, "ffn_dim_multiplier": 1.5, "use_bias": True, "scan_blocks": False},
    **{"attention_backend": "pallas_triton", "mask_across_document_boundaries": True, "dtype": "float32"},
    **{"dropout_rate": 0.1, "add_embedding_dropout": True, "logits_soft_cap": None, "parallel": PARALLEL},
}
_OPTIMIZER = {
    **{"name": "adamw", "beta1": 0.8, "beta2": 0.9, "eps": 1e-7, "weight_decay": 0.2, "nesterov": False},
    **{"weight_decay_include": [r".*(kernel|\"x\")$"], "weight_decay_exclude": None, "use_sharded_clip_norm": True},
    **{"grad_clip_norm": 0.5, "grad_clip_value": None, "alpha": 8.0, "beta3": 0.9999},
    "scheduler": {
        **{"lr": 2e-3, "name": "cosine_decay", "decay_steps": 500, "end_lr": None, "end_lr_factor": 0.2},
        **{"cooldown_steps": 50, "warmup_steps": 20, "cooldown_lr": 1e-4},
    },
}
_TRAINER = {
    **{"seed": 5, "seed_eval": 0, "debug": False, "donate_train_state": True, "gradient_accumulate_steps": 4},
    **{"check_for_nan": True, "check_val_every_n_epoch": 1, "check_val_every_n_steps": 250},
    **{"enable_progress_bar": False, "logger": {"log_every_n_steps": 7, "log_path": "/data/out", "log_tools": []}},
    "callbacks": [
        {
            **{"every_n_steps": -1, "every_n_epochs": 1, "main_process_only": False, "max_to_keep": 3, "mode": "min"},
            **{"monitor": "val_perplexity", "save_optimizer_state": True, "enable_async_checkpointing": False},
        }
    ],
}
_XLSTM = "xlstm_jax.models.xlstm_parallel.xlstm_lm_model.xLSTMLMModel"
_TRANSFORMER = "xlstm_jax.models.llama.llama.LlamaTransformer"

CELL = "model.model_config.mlstm_block.mlstm.mlstm_cell"
LAYER = "model.model_config.mlstm_block.mlstm"
BLOCK = "model.model_config.mlstm_block"


def tree(kind="mlstm", changes=()):
    """Plain values of a run with this layer type (or llama), some of them replaced by dotted path; `...` removes."""
    model = copy.deepcopy(_LLAMA if kind == "llama" else _MODEL)
    if kind == "mlstm_v1":
        model["mlstm_block"]["mlstm"]["layer_type"] = kind
        model["mlstm_block"]["feedforward"] = copy.deepcopy(FEED_FORWARD)
    content = {
        "model": {
            "model_class": _TRANSFORMER if kind == "llama" else _XLSTM,
            "parallel": copy.deepcopy(PARALLEL),
            "model_config": model,
        },
        "optimizer": copy.deepcopy(_OPTIMIZER),
        "trainer": copy.deepcopy(_TRAINER),
    }
    return changed(content, dict(changes))


def changed(content, changes):
    """The content with values replaced, by dotted path; `...` removes one."""
    for path, value in changes.items():
        *outer, name = path.split(".")
        node = content
        for key in outer:
            node = node[int(key) if isinstance(node, list) else key]
        if value is ...:
            del node[name]
        else:
            node[name] = value
    return content


def nested(content):
    """The oldest form: objects all the way down, null, and `jax.numpy.bfloat16`."""
    return json.dumps(_each(content, lambda key, value: f"jax.numpy.{value}" if _is_dtype(key, value) else value))


def with_none_strings(content):
    """Null as 'None' and types as `<class '...'>`, layouts and settings as the repr of their dataclass."""

    def write(key, value):
        if key == "parallel" and isinstance(value, dict):
            return _call("ParallelConfig", value)
        if key == "kwargs" and value:
            return _call("mLSTMBackendTritonConfig", value)
        if value is None:
            return "None"
        return f"<class 'jax.numpy.{value}'>" if _is_dtype(key, value) else repr(value) if key == "_registry" else value

    return json.dumps(_each(content, write))


def with_dict_reprs(content):
    """Layouts with lists, and what Hydra composed as the repr of a dict or list; extra spaces, as nobody promised
    none."""

    def write(key, value):
        if key == "parallel" and isinstance(value, dict):
            listed = {name: list(item) if isinstance(item, tuple) else item for name, item in value.items()}
            return _call("ParallelConfig", listed).replace(", ", " ,  ")
        if key in ("kwargs", "scheduler", "weight_decay_include", "igate_bias_init_range") and value is not None:
            return f" {value!r} "
        return "{}" if key == "_registry" else value

    return json.dumps(_each(content, write), ensure_ascii=False)


ERAS = {"nested": nested, "none strings": with_none_strings, "dict reprs": with_dict_reprs}


def _is_dtype(key, value):
    return key.endswith("dtype") and not key.startswith("fsdp") and isinstance(value, str)


def _call(name, fields):
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in fields.items())})"


def _each(value, write, key=""):
    value = write(key, value)
    if isinstance(value, dict):
        return {name: _each(item, write, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, write) for item in value]
    return value
