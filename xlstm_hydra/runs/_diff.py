"""What differs between two runs, and how much it matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from xlstm_hydra import configs
from xlstm_hydra.configs import CellConfig, ConfigDict, ModelConfig, RunConfig
from xlstm_hydra.configs.data import ByteDataConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig
from xlstm_hydra.configs.mlstm import OriginalLayerConfig
from xlstm_hydra.configs.scheduler import _DecayConfig

from ._record import Record

PARAMETERS, NUMERICS, LAYOUT, BOOKKEEPING = "parameters", "numerics", "layout", "bookkeeping"

KINDS = {
    PARAMETERS: "changes the parameters",
    NUMERICS: "changes numerics",
    LAYOUT: "changes only layout or speed",
    BOOKKEEPING: "bookkeeping",
}
"""How much a difference matters, the most first: other names or shapes of parameters; other losses; other devices,
memory or time with the same losses up to rounding; only what is shown and kept."""


class _Absent:
    """Stands for the value of a field that one of two configs does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
"""The value of a field that one side does not have."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field that differs."""

    key: str
    """As it is typed: `model.num_blocks`."""

    before: Any
    """Its value in the first config as plain JSON, or `ABSENT`."""

    after: Any
    """Its value in the second config."""

    kind: str
    """How much it matters: a key of `KINDS`."""


def diff(before: Record | RunConfig, after: Record | RunConfig) -> list[Difference]:
    """Every field that differs, what matters most first. Groups that only one side recorded are left out: see
    `not_compared`."""
    old, new = _groups(before), _groups(after)
    found = [each for group in old if group in new for each in _differences(group, old[group], new[group])]
    order = list(KINDS)
    return sorted(found, key=lambda each: order.index(each.kind))


def not_compared(before: Record | RunConfig, after: Record | RunConfig) -> list[str]:
    """The groups that only one side recorded."""
    return sorted(_groups(before).keys() ^ _groups(after).keys())


def kind_of(key: str) -> str:
    """How much a field matters that is typed as `key`, such as `optimizer.lr`; where several options of its group have
    it, the most. What nobody knows may change the parameters."""
    group, _, name = key.partition(".")
    found = {
        kind
        for cls, effects in EFFECTS.items()
        for kind, names in effects.items()
        if name in names.split() and _group_of(cls) == group
    }
    return next((kind for kind in KINDS if kind in found), PARAMETERS)


def _group_of(cls: type) -> str:
    """The group that a class of ours is an option of; models have several modules."""
    module = cls.__module__.rpartition(".")[2]
    return {"auto": "parallel"}.get(module, module if module in RunConfig.__dataclass_fields__ else "model")


def _groups(side: Record | RunConfig) -> Mapping[str, ConfigDict]:
    return side.groups() if isinstance(side, RunConfig) else side.groups


def _differences(group: str, before: ConfigDict, after: ConfigDict) -> Iterator[Difference]:
    old, new = dict(_fields(before)), dict(_fields(after))
    for name in {**old, **new}:
        (left, owner), (right, other) = old.get(name, (ABSENT, None)), new.get(name, (ABSENT, None))
        if left != right:
            yield Difference(f"{group}.{name}", left, right, _kind(owner or other, name))


def _fields(config: ConfigDict) -> Iterator[tuple[str, tuple[Any, type]]]:
    """The name of every field, its plain value, and the class that has it. A model's are flat, as they are typed."""
    if not isinstance(config, ModelConfig):
        yield from ((name, (value, type(config))) for name, value in config.to_dict().items())
        return
    yield "model_class", (config.class_path(), ModelConfig)
    if config.model_config is not None:
        yield from _fields(config.model_config)


def _kind(owner: Any, name: str) -> str:
    """How much a field matters. Of a config that is not ours nothing is known, so it may change the parameters."""
    for cls in owner.__mro__:
        for kind, names in EFFECTS.get(cls, {}).items():
            if name in names.split():
                return kind
    return PARAMETERS


EFFECTS: dict[type, dict[str, str]] = {
    ModelConfig: {PARAMETERS: "model_class model_config", LAYOUT: "parallel"},
    LanguageModelConfig: {
        PARAMETERS: "vocab_size embedding_dim num_blocks tie_weights add_post_blocks_norm add_post_norm scan_blocks",
        NUMERICS: "context_length dtype lm_head_dtype logits_soft_cap weight_decay_on_embedding add_embedding_dropout"
        " norm_type norm_eps cell_norm_eps init_distribution init_distribution_embed init_distribution_out"
        " output_init_fn",
    },
    CellConfig: {
        PARAMETERS: "num_heads bias qk_dim_factor v_dim_factor add_qk_norm",
        NUMERICS: "dropout gate_soft_cap gate_dtype igate_bias_init_range fgate_bias_init_range"
        " reset_at_document_boundaries reset_fgate_value cell_eps",
        LAYOUT: "backend chunk_size",
    },
    OriginalLayerConfig: {
        PARAMETERS: "proj_factor round_proj_up_dim_up round_proj_up_to_multiple_of conv1d_kernel_size"
        " qkv_proj_blocksize vmap_qk gate_input gate_linear_headwise",
        NUMERICS: "cell_norm_type",
    },
    configs.mLSTMConfig: {
        PARAMETERS: "ff_type ff_proj_factor ff_round_proj_up_dim_up ff_round_proj_up_to_multiple_of",
        NUMERICS: "act_fn ff_dtype",
    },
    configs.mLSTMv1Config: {
        PARAMETERS: "proj_factor round_proj_up_dim_up round_proj_up_to_multiple_of ff_type",
        NUMERICS: "act_fn ff_dtype cell_norm_type_v1",
    },
    configs.xLSTMConfig: {
        PARAMETERS: "slstm_at slstm_conv1d_kernel_size slstm_proj_factor ff_type",
        NUMERICS: "slstm_forget_gate slstm_fgate_bias_init_range act_fn ff_dtype",
    },
    configs.LlamaConfig: {
        PARAMETERS: "head_dim qk_norm ffn_multiple_of ffn_dim_multiplier use_bias",
        NUMERICS: "causal theta mask_across_document_boundaries dropout_rate",
        LAYOUT: "attention_backend",
    },
    configs.ParallelConfig: {
        NUMERICS: "fsdp_gather_dtype fsdp_grad_scatter_dtype",
        LAYOUT: "data_axis_size fsdp_axis_size pipeline_axis_size model_axis_size data_axis_name fsdp_axis_name"
        " pipeline_axis_name model_axis_name remat fsdp_modules fsdp_min_weight_size tp_async_dense",
    },
    configs.AutoParallelConfig: {LAYOUT: "name headroom"},
    configs.TaskConfig: {BOOKKEEPING: "name"},
    configs.EvaluateTaskConfig: {BOOKKEEPING: "checkpoint split num_batches"},
    configs.GenerateTaskConfig: {
        BOOKKEEPING: "checkpoint prompt prompt_tokens max_new_tokens stop_token num_samples temperature top_k top_p"
        " seed"
    },
    configs.PlanTaskConfig: {BOOKKEEPING: "num_devices device parameters compile search"},
    configs.DeviceConfig: {
        BOOKKEEPING: "name platform kinds memory_gib memory_fraction memory_bandwidth float32_tflops bfloat16_tflops"
        " float16_tflops devices_per_host host_bandwidth network_bandwidth"
    },
    configs.DataConfig: {NUMERICS: "name seed validation_fraction", LAYOUT: "prefetch"},
    ByteDataConfig: {NUMERICS: "pad_last"},
    configs.TextDataConfig: {NUMERICS: "path"},
    configs.SyntheticDataConfig: {NUMERICS: "num_examples motif_length"},
    configs.OptimizerConfig: {
        NUMERICS: "name lr grad_clip_norm grad_clip_value weight_decay weight_decay_include weight_decay_exclude"
    },
    configs.AdamWConfig: {NUMERICS: "beta1 beta2 eps nesterov"},
    configs.LionConfig: {NUMERICS: "beta1 beta2"},
    configs.SGDConfig: {NUMERICS: "momentum nesterov"},
    configs.SchedulerConfig: {NUMERICS: "name warmup_steps cooldown_steps cooldown_lr_factor decay_steps"},
    _DecayConfig: {NUMERICS: "end_lr_factor"},
    configs.TrainerConfig: {
        NUMERICS: "max_steps batch_size seed",
        LAYOUT: "gradient_accumulate_steps pipeline_microbatches pipeline_remat remat_policy simulated_devices",
        BOOKKEEPING: "ignore_plan compilation_cache_dir eval_every_n_steps eval_batches check_for_nan debug_nans",
    },
    configs.CheckpointConfig: {
        NUMERICS: "init_from",
        BOOKKEEPING: "save_every_n_steps save_last max_to_keep keep async_save verify restore lenient",
    },
    configs.LoggerConfig: {BOOKKEEPING: "log_every_n_steps progress csv tensorboard"},
    configs.DistributedConfig: {
        LAYOUT: "name coordinator_address num_processes process_id local_device_ids heartbeat_timeout_seconds"
        " initialization_timeout_seconds device_order"
    },
}
"""How much each field matters, beside the class that defines it. A test refuses a field of ours that is in no entry."""
