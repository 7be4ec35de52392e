"""Conversion of our model configs to the metadata that xlstm-jax writes: the inverse of the package's conversion."""

from xlstm_hydra.configs import ParallelConfig, mLSTMv1Config

CLASS = "xlstm_jax.models.xlstm_parallel.xlstm_lm_model.xLSTMLMModel"
_TOP = (
    *("vocab_size", "embedding_dim", "num_blocks", "context_length", "tie_weights", "weight_decay_on_embedding"),
    *("add_embedding_dropout", "add_post_blocks_norm", "bias", "dropout", "dtype", "lm_head_dtype", "norm_type"),
    *("norm_eps", "logits_soft_cap", "init_distribution_embed", "init_distribution_out"),
)
_V0 = ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of", "conv1d_kernel_size")
_V0_MAPS = ("qkv_proj_blocksize", "vmap_qk", "gate_input")
_LAYER = ("num_heads", "qk_dim_factor", "v_dim_factor", "init_distribution", "output_init_fn")
_COPIES = ("embedding_dim", "bias", "dropout", "context_length", "dtype", "norm_type")
_CELL = (
    *("context_length", "num_heads", "dtype", "gate_dtype", "gate_soft_cap", "igate_bias_init_range"),
    *("fgate_bias_init_range", "add_qk_norm", "reset_at_document_boundaries", "reset_fgate_value"),
)
_V0_DEFAULTS = {
    **{"proj_factor": 2.0, "round_proj_up_dim_up": True, "round_proj_up_to_multiple_of": 64, "conv1d_kernel_size": 4},
    **{"qkv_proj_blocksize": 4, "vmap_qk": False, "gate_input": "qkv"},
}
_BACKENDS = {"chunkwise": "triton_kernels", "recurrent": "recurrent", "quadratic": "parallel_stabilized"}


def record(config, *, scan=True, **parallel):
    """The metadata as an object.

    Args:
        config: config of our original mLSTM or v1 family.
        scan: record scanned blocks.
        parallel: changes to the layout.
    """
    layout, layers = ParallelConfig(**parallel).to_dict(), config.num_blocks

    def own(*names):
        return {name: config.get(name) for name in names}

    block = {
        "add_post_norm": config.add_post_norm,
        "mlstm": _layer(config, layout, own),
        "feedforward": None if config.ff_type is None else _feed_forward(config, layout, own),
        **{"parallel": layout, "_num_blocks": layers, "_block_idx": None},
    }
    model = {
        **own(*_TOP),
        **{"scan_blocks": scan, "mlstm_block": block, "slstm_block": None, "slstm_at": [], "parallel": layout},
        "_block_map": ",".join("0" * layers),
    }
    return {"model": {"model_class": CLASS, "parallel": layout, "model_config": model}}


def _layer(config, layout, own):
    is_v1 = isinstance(config, mLSTMv1Config)
    width = 64 * -(-2 * config.embedding_dim // 64) if is_v1 else config.inner_dim()
    cell = {
        **own(*_CELL),
        **{"embedding_dim": width, "parallel": layout, "norm_eps": config.cell_norm_eps},
        "norm_type": config.norm_type,
        "norm_type_v1": config.cell_norm_type_v1 if is_v1 else "layernorm",
        "gate_linear_headwise": False if is_v1 else config.gate_linear_headwise,
        "backend": {"name": _BACKENDS[config.backend], "kwargs": _backend(config), "_registry": {}},
    }
    return {
        **own(*_LAYER, *_COPIES),
        **(_V0_DEFAULTS if is_v1 else own(*_V0, *_V0_MAPS)),
        **{"layer_type": "mlstm_v1" if is_v1 else "mlstm", "debug_cell": False, "mlstm_cell": cell, "parallel": layout},
        **{"_proj_up_dim": width, "_inner_embedding_dim": width, "_num_blocks": config.num_blocks, "_block_idx": None},
    }


def _backend(config):
    if config.backend == "quadratic":
        return {"context_length": config.context_length}
    settings = {"chunk_size": config.chunk_size} if config.backend == "chunkwise" else {"use_scan": True}
    return settings | {"eps": config.cell_eps}


def _feed_forward(config, layout, own):
    prefix = "" if isinstance(config, mLSTMv1Config) else "ff_"
    width = ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of")
    return {
        **{name: config.get(f"{prefix}{name}") for name in width},
        **own("ff_type", "act_fn", "embedding_dim", "bias", "dropout", "init_distribution", "output_init_fn"),
        **{"dtype": config.ff_dtype or config.dtype, "parallel": layout, "_num_blocks": config.num_blocks},
        "_proj_up_dim": config.ff_dim(),
    }
