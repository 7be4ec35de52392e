"""Every rule of every group: a value that breaks it, and the message."""

import pytest

from xlstm_hydra.configs import (
    AdamWConfig,
    CheckpointConfig,
    ConfigDict,
    ConfigError,
    ConstantConfig,
    CosineConfig,
    EvaluateTaskConfig,
    ExponentialConfig,
    GenerateTaskConfig,
    LionConfig,
    LlamaConfig,
    LoggerConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    SGDConfig,
    StdlibDataConfig,
    SubModelConfig,
    SyntheticDataConfig,
    TextDataConfig,
    TrainerConfig,
    TrainTaskConfig,
    mLSTMConfig,
    mLSTMv1Config,
    xLSTMConfig,
)

SIZES = {"embedding_dim": 128, "num_blocks": 2, "context_length": 64, "vocab_size": 256}


def mlstm(**changes):
    return mLSTMConfig(**{**SIZES, "num_heads": 4, **changes})


def mlstm_v1(**changes):
    return mLSTMv1Config(**{**SIZES, "num_heads": 4, **changes})


def llama(**changes):
    return LlamaConfig(**{**SIZES, "head_dim": 32, **changes})


def xlstm(**changes):
    return xLSTMConfig(**{**SIZES, "num_heads": 4, "slstm_at": [1], **changes})


def evaluate(**changes):
    return EvaluateTaskConfig(**{"checkpoint": "run", **changes})


def generate(**changes):
    return GenerateTaskConfig(checkpoint="run", **changes)


GENERATE = generate(prompt="abc", max_new_tokens=62, stop_token=300)


def run(*, parallel=None, model=None, config=mlstm, **groups):
    parallel, model = ParallelConfig(**(parallel or {})), config(**(model or {}))
    return RunConfig(model=ModelConfig("a.Model", parallel, model), **groups)


def broken(make, **values):
    """The problems of building a config, as the user reads them."""
    with pytest.raises(ConfigError) as caught:
        make(**values)
    return [str(problem) for problem in caught.value.problems]


RANGES = [
    (CheckpointConfig, {"save_every_n_steps": -1}, "must be 0 or more"),
    (CheckpointConfig, {"max_to_keep": 0}, "must be 1 or more"),
    (CheckpointConfig, {"keep": "last"}, "not a known value. Choose latest or best (did you mean latest?)."),
    (CheckpointConfig, {"restore": " @20"}, "must name a run folder, such as outputs/my_run or outputs/my_run@200"),
    (StdlibDataConfig, {"seed": -1}, "must be 0 or more"),
    (StdlibDataConfig, {"prefetch": -1}, "must be 0 or more"),
    (StdlibDataConfig, {"validation_fraction": 0.0}, "must be greater than 0"),
    (StdlibDataConfig, {"validation_fraction": 1.0}, "must be less than 1"),
    (StdlibDataConfig, {"validation_fraction": float("nan")}, "must be greater than 0"),
    (TextDataConfig, {"path": " "}, "must name a file, a folder or a glob"),
    (TextDataConfig, {"path": "b\udcffoks"}, "must be valid UTF-8"),
    (SyntheticDataConfig, {"num_examples": 1}, "must be 2 or more"),
    (SyntheticDataConfig, {"motif_length": 0}, "must be 1 or more"),
    (LoggerConfig, {"log_every_n_steps": 0}, "must be 1 or more"),
    (TrainTaskConfig, {"name": "trian"}, "the name of TrainTaskConfig is train"),
    (EvaluateTaskConfig, {"checkpoint": "@20"}, "must name a run folder, such as outputs/my_run or outputs/my_run@200"),
    (evaluate, {"split": "test"}, "not a known value. Choose validation, train or all"),
    (evaluate, {"num_batches": 0}, "must be 1 or more"),
    (generate, {"max_new_tokens": 0}, "must be 1 or more"),
    (generate, {"num_samples": 0}, "must be 1 or more"),
    (generate, {"top_k": 0}, "must be 1 or more"),
    (generate, {"temperature": -0.1}, "must be 0 or more"),
    (generate, {"temperature": float("nan")}, "must be 0 or more"),
    (generate, {"seed": 2**32}, "must be less than"),
    (generate, {"stop_token": -1}, "must be 0 or more"),
    (generate, {"top_p": 0.0}, "must be greater than 0"),
    (generate, {"top_p": 1.1}, "must be at most 1"),
    (generate, {"prompt_tokens": []}, "must contain at least one token id, each 0 or more. For example [464,2068]."),
    (
        generate,
        {"prompt_tokens": [3, -1]},
        "must contain at least one token id, each 0 or more. For example [464,2068].",
    ),
    (AdamWConfig, {"lr": -1.0}, "must be 0 or more"),
    (AdamWConfig, {"weight_decay": -0.1}, "must be 0 or more"),
    (AdamWConfig, {"grad_clip_norm": 0.0}, "must be greater than 0"),
    (AdamWConfig, {"grad_clip_value": -1.0}, "must be greater than 0"),
    (AdamWConfig, {"weight_decay_include": ["("]}, "not a regular expression: missing )"),
    (AdamWConfig, {"weight_decay_exclude": ["*"]}, "not a regular expression: nothing to repeat"),
    (AdamWConfig, {"beta1": 1.0}, "must be less than 1"),
    (AdamWConfig, {"beta2": -0.1}, "must be 0 or more"),
    (AdamWConfig, {"eps": -1e-9}, "must be 0 or more"),
    (LionConfig, {"beta2": 1.0}, "must be less than 1"),
    (LionConfig, {"beta1": -1.0}, "must be 0 or more"),
    (SGDConfig, {"momentum": 1.0}, "must be less than 1"),
    (ConstantConfig, {"warmup_steps": -1}, "must be 0 or more"),
    (ConstantConfig, {"cooldown_steps": -1}, "must be 0 or more"),
    (ConstantConfig, {"decay_steps": 0}, "must be 1 or more"),
    (CosineConfig, {"end_lr_factor": -0.1}, "must be 0 or more"),
    (ExponentialConfig, {"end_lr_factor": 0.0}, "an exponential decay never reaches 0"),
    (TrainerConfig, {"max_steps": 0}, "must be 1 or more"),
    (TrainerConfig, {"batch_size": 0}, "must be 1 or more"),
    (TrainerConfig, {"gradient_accumulate_steps": 0}, "must be 1 or more"),
    (TrainerConfig, {"simulated_devices": 0}, "must be 1 or more"),
    (TrainerConfig, {"pipeline_microbatches": 0}, "must be 1 or more"),
    (TrainerConfig, {"remat_policy": "dot"}, "Choose nothing, dots or dots_with_no_batch_dims (did you mean dots?)."),
    (TrainerConfig, {"seed": -1}, "must be 0 or more"),
    (TrainerConfig, {"eval_every_n_steps": -1}, "must be 0 or more"),
    (TrainerConfig, {"eval_batches": -1}, "must be 0 or more"),
    (TrainerConfig, {"compilation_cache_dir": " "}, "must name a folder. Set it to null for no cache."),
    (
        TrainerConfig,
        {"compilation_cache_dir": "gs://b/c"},
        "must be a folder on this host. Leave compilation_cache_dir=auto",
    ),
    (ParallelConfig, {"model_axis_size": 0}, "an axis size is positive, or -1 to be inferred"),
    (ParallelConfig, {"data_axis_name": "d p"}, "an axis name must be a word of letters, digits and _"),
    (ParallelConfig, {"fsdp_min_weight_size": -1}, "must be 0 or more"),
    (ParallelConfig, {"fsdp_gather_dtype": "bf16"}, "Choose float32, bfloat16, float16 or null"),
    (ParallelConfig, {"fsdp_grad_scatter_dtype": "int8"}, "Choose float32, bfloat16, float16 or null"),
    (mlstm, {"vocab_size": 0}, "must be 1 or more"),
    (mlstm, {"embedding_dim": 0}, "must be 1 or more"),
    (mlstm, {"num_blocks": 0}, "must be 1 or more"),
    (mlstm, {"num_heads": 0}, "must be 1 or more"),
    (mlstm, {"norm_eps": 0.0}, "must be greater than 0"),
    (mlstm, {"cell_norm_eps": 0.0}, "must be greater than 0"),
    (mlstm, {"cell_eps": -1e-6}, "must be 0 or more"),
    (mlstm, {"ff_type": "mlp"}, "Choose ffn_gated, ffn or null"),
    (mlstm, {"logits_soft_cap": 0.0}, "must be a finite number other than 0"),
    (mlstm, {"dropout": 1.0}, "must be less than 1"),
    (mlstm, {"dropout": -0.1}, "must be 0 or more"),
    (mlstm, {"dtype": "bfloat"}, "Choose float32, bfloat16 or float16 (did you mean bfloat16?)."),
    (mlstm, {"lm_head_dtype": "f32"}, "Choose float32"),
    (mlstm, {"gate_dtype": "f32"}, "Choose float32"),
    (mlstm, {"norm_type": "batchnorm"}, "Choose layernorm or rmsnorm"),
    (mlstm, {"cell_norm_type": "rms"}, "Choose layernorm or rmsnorm"),
    (mlstm, {"init_distribution": "gauss"}, "Choose normal, truncated_normal or uniform"),
    (mlstm, {"init_distribution_embed": "gauss"}, "Choose normal, truncated_normal or uniform"),
    (mlstm, {"init_distribution_out": "gauss"}, "Choose normal, truncated_normal or uniform"),
    (mlstm, {"output_init_fn": "wangg"}, "Choose wang, wang2, small or zeros (did you mean wang?)."),
    (mlstm, {"gate_soft_cap": 0.0}, "must be a finite number other than 0. Set gate_soft_cap=null for no cap."),
    (mlstm, {"chunk_size": 0}, "must be 1 or more"),
    (mlstm, {"backend": "triton"}, "Choose chunkwise, quadratic or recurrent"),
    (mlstm, {"fgate_bias_init_range": [1.0]}, "must be [low, high], for example [3.0,6.0]"),
    (mlstm, {"igate_bias_init_range": "x"}, "must be a number, [low, high], or null"),
    (mlstm, {"igate_bias_init_range": [1, 2, 3]}, "must be a number, [low, high], or null"),
    (mlstm, {"proj_factor": 0.0}, "must be greater than 0"),
    (mlstm, {"proj_factor": float("nan")}, "must be greater than 0"),
    (mlstm, {"proj_factor": float("inf")}, "must be greater than 0 and finite"),
    (mlstm, {"qk_dim_factor": float("nan")}, "must be greater than 0"),
    (mlstm, {"v_dim_factor": float("inf")}, "must be greater than 0 and finite"),
    (mlstm, {"conv1d_kernel_size": 0}, "must be 1 or more"),
    (mlstm, {"round_proj_up_to_multiple_of": 0}, "must be 1 or more"),
    (mlstm, {"qkv_proj_blocksize": 0}, "must be 1 or more"),
    (mlstm, {"qkv_proj_blocksize": 3}, "must divide the up-projected width 256. Choose 1, 2, 4, 8, 16, 32 or 64."),
    (mlstm, {"gate_input": "x"}, "Choose qkv, x_mlstm, x_mlstm_conv or x_mlstm_conv_act"),
    (mlstm_v1, {"proj_factor": float("inf")}, "must be greater than 0 and finite"),
    (mlstm_v1, {"round_proj_up_to_multiple_of": 0}, "must be 1 or more"),
    (mlstm_v1, {"ff_type": "mlp"}, "Choose ffn_gated, ffn or null"),
    (mlstm_v1, {"act_fn": "silu"}, "Choose gelu, relu, relu^2, sigmoid, swish or selu"),
    (mlstm_v1, {"ff_dtype": "f32"}, "Choose float32, bfloat16, float16 or null"),
    (mlstm_v1, {"cell_norm_type_v1": "rms"}, "Choose layernorm or rmsnorm"),
    (llama, {"head_dim": 0}, "must be 1 or more"),
    (
        llama,
        {"head_dim": 1},
        "must be even, because rotary positions rotate pairs of channels. Choose 2, 4, 8, 16, 32, 64 or 128.",
    ),
    (llama, {"theta": 0.0}, "must be greater than 0"),
    (llama, {"theta": float("inf")}, "must be greater than 0 and finite"),
    (llama, {"ffn_multiple_of": 0}, "must be 1 or more"),
    (llama, {"ffn_dim_multiplier": 0.0}, "must be greater than 0"),
    (llama, {"ffn_dim_multiplier": float("nan")}, "must be greater than 0"),
    (llama, {"ffn_dim_multiplier": 1e-9}, "the feed-forward width must be at least 1. Set ffn_dim_multiplier higher."),
    (llama, {"attention_backend": "cuddn"}, "Choose xla, cudnn or null (did you mean cudnn?)."),
    (llama, {"dropout_rate": 1.0}, "must be less than 1"),
    (llama, {"dropout_rate": -0.1}, "must be 0 or more"),
    (llama, {"lm_head_dtype": "f32"}, "Choose float32, bfloat16, float16 or null"),
    (xlstm, {"slstm_at": [0, 2, -1]}, "there is no block -1 or 2. Blocks are 0 to 1."),
    (xlstm, {"num_blocks": 0}, "must be 1 or more"),
    (xlstm, {"slstm_at": [1, 0, 1]}, "lists block 1 more than once"),
    (xlstm, {"slstm_conv1d_kernel_size": -1}, "must be 0 or more"),
    (xlstm, {"slstm_proj_factor": 0.0}, "must be greater than 0"),
    (xlstm, {"slstm_forget_gate": "tanh"}, "Choose sigmoid or exp"),
    (xlstm, {"slstm_fgate_bias_init_range": [1.0]}, "must be [low, high], for example [3.0,6.0]"),
    (xlstm, {"ff_type": "mlp"}, "Choose ffn_gated or ffn"),
    (xlstm, {"act_fn": "silu"}, "Choose gelu, relu"),
    (xlstm, {"ff_dtype": "f32"}, "Choose float32, bfloat16, float16 or null"),
]


@pytest.mark.parametrize(
    ("make", "values", "words"),
    RANGES,
    ids=[f"{make.__name__}-{next(iter(values.items()))}" for make, values, _ in RANGES],
)
def test_a_value_out_of_range_is_refused_with_its_key(make, values, words):
    ((key, value),) = values.items()
    problems = [text for text in broken(make, **values) if text.startswith(f"{key}=")]
    assert any(words in text for text in problems), problems


RELATIONS = [
    (generate, {"prompt": "Once", "prompt_tokens": [3]}, "only one prompt is allowed. Remove one of them."),
    *(
        (
            generate,
            {"temperature": 0.0, key: value},
            f"{key}={value}, temperature=0: has no effect with",
        )
        for key, value in {"top_k": 5, "top_p": 0.9, "seed": 1, "num_samples": 2}.items()
    ),
    (AdamWConfig, {"name": "lion"}, "the name of AdamWConfig is adamw"),
    (ConstantConfig, {"decay_steps": 5}, "a constant schedule without a cool-down has no length"),
    (
        AdamWConfig,
        {"weight_decay": 0.0, "weight_decay_exclude": ["bias"]},
        "has no effect without weight decay",
    ),
    (mlstm_v1, {"tie_weights": True, "init_distribution_out": "uniform"}, "has no effect with this tie_weights"),
    (mlstm_v1, {"add_post_blocks_norm": False, "norm_eps": 0.5}, "has no effect with this add_post_blocks_norm"),
    (mlstm_v1, {"backend": "quadratic", "chunk_size": 8}, "has no effect with this backend. Leave chunk_size at 64"),
    (SGDConfig, {"nesterov": True}, "nesterov=true, momentum=0.0: Nesterov momentum needs a momentum. Set momentum"),
    (ConstantConfig, {"cooldown_lr_factor": 0.1}, "cooldown_steps=0: has no effect without a cool-down"),
    (
        TrainerConfig,
        {"batch_size": 6, "gradient_accumulate_steps": 4},
        "batch_size=6, gradient_accumulate_steps=4: gradient_accumulate_steps must divide batch_size. "
        "Set it to 1, 2, 3 or 6.",
    ),
    (ParallelConfig, {"fsdp_axis_size": -1}, "data_axis_size=-1, fsdp_axis_size=-1: at most one axis size can be -1"),
    (ParallelConfig, {"fsdp_axis_name": "dp"}, "data_axis_name='dp', fsdp_axis_name='dp': axis names must differ"),
    (mlstm, {"num_heads": 3}, "num_heads must divide the width 256 that qk_dim_factor gives and the width 256"),
    (
        mlstm_v1,
        {"num_heads": 128},
        "num_heads must divide the width 64 that qk_dim_factor gives. Set num_heads to 1, 2, 4",
    ),
    (mlstm, {"chunk_size": 48}, "context_length=64, chunk_size=48: chunk_size must divide context_length"),
    (mlstm, {"v_dim_factor": 0.875, "qkv_proj_blocksize": 4}, "the width 224 must be a multiple of the 64 blocks"),
    (mlstm, {"proj_factor": 0.1, "round_proj_up_dim_up": False}, "the up-projected width must be at least 1"),
    (mlstm_v1, {"proj_factor": 0.1, "round_proj_up_dim_up": False}, "the feed-forward width must be at least 1"),
    *(
        (make, {"ff_type": None, key: value}, f"{key}={shown}, ff_type=null: has no effect with this ff_type. Leave")
        for make, key, value, shown in [
            (mlstm_v1, "proj_factor", 2.0, 2.0),
            (mlstm_v1, "act_fn", "relu", "'relu'"),
            (mlstm, "ff_proj_factor", 2.0, 2.0),
            (mlstm, "ff_round_proj_up_dim_up", False, "false"),
            (mlstm, "ff_round_proj_up_to_multiple_of", 8, 8),
            (mlstm, "ff_dtype", "float32", "'float32'"),
        ]
    ),
    (
        mlstm,
        {"ff_type": "ffn", "ff_proj_factor": 0.1, "ff_round_proj_up_dim_up": False},
        "the feed-forward width must be at least 1. Set ff_round_proj_up_dim_up=true.",
    ),
    (mlstm, {"ff_type": "ffn", "ff_proj_factor": 0.0}, "must be greater than 0"),
    (mlstm, {"ff_type": "ffn", "ff_round_proj_up_to_multiple_of": 0}, "must be 1 or more"),
    (
        llama,
        {"head_dim": 48},
        "embedding_dim=128, head_dim=48: head_dim must divide embedding_dim. Set head_dim to 2, 4, 8, 16, 32, 64",
    ),
    (
        llama,
        {"embedding_dim": 3, "head_dim": 3},
        "must be even, because rotary positions rotate pairs of channels. Set embedding_dim",
    ),
    (
        llama,
        {"attention_backend": "cudnn", "dtype": "float32"},
        "attention_backend='cudnn', dtype='float32': cuDNN attention supports only 16-bit types. Set dtype to",
    ),
    (llama, {"attention_backend": "cudnn", "head_dim": 4}, "cuDNN attention supports head widths that are mult"),
    (
        llama,
        {"attention_backend": "cudnn", "mask_across_document_boundaries": True, "context_length": 65},
        "cuDNN attention can mask documents only if the context length is even. Set context_length to 66.",
    ),
    (xlstm, {"slstm_proj_factor": 0.1, "round_proj_up_dim_up": False}, "the feed-forward width must be at least 1"),
    (xlstm, {"embedding_dim": 126}, "num_heads must divide embedding_dim for the sLSTM. Set num_heads to 1, 2, 3, 6"),
    (xlstm, {"slstm_at": [], "act_fn": "relu"}, "has no effect with this slstm_at. Leave act_fn at 'gelu'"),
    (
        xlstm,
        {"slstm_at": [], "slstm_fgate_bias_init_range": [0.0, 1.0]},
        "slstm_fgate_bias_init_range=[0.0, 1.0], slstm_at=[]: has no effect with this slstm_at. "
        "Leave slstm_fgate_bias_init_range at [3.0, 6.0].",
    ),
    (xlstm, {"slstm_at": [0, 1], "backend": "quadratic"}, "has no effect with this slstm_at. Leave backend at"),
]


@pytest.mark.parametrize(("make", "values", "words"), RELATIONS, ids=[words[-40:] for _, _, words in RELATIONS])
def test_inconsistent_values_are_refused_with_all_keys(make, values, words):
    problems = broken(make, **values)
    assert any(words in text for text in problems), problems


BETWEEN = [
    (
        {"task": GENERATE, "config": llama, "model": {"causal": False}},
        "model.causal=false: a model that also sees later tokens cannot continue a text.",
    ),
    (
        {"task": GENERATE, "config": llama},
        "task.max_new_tokens=62, model.context_length=64: together with the 4 tokens of the prompt, they exceed the "
        "context length. Set task.max_new_tokens to at most 61, or model.context_length higher to exceed",
    ),
    (
        {"task": GENERATE, "model": {"vocab_size": 32}},
        "task.prompt='abc', model.vocab_size=32: text needs 256 token ids. Give token ids in task.prompt_tokens.",
    ),
    (
        {"task": GENERATE, "model": {"vocab_size": 300}},
        "task.stop_token=300, model.vocab_size=300: token ids must be below model.vocab_size",
    ),
    (
        {"task": generate(prompt_tokens=[3, 256])},
        "task.prompt_tokens=256, model.vocab_size=256: token ids must be below model.vocab_size",
    ),
    ({"task": generate(top_k=257)}, "exceeds the vocabulary size. Remove task.top_k to sample from all tokens."),
    (
        {"parallel": {"pipeline_axis_size": 4}, "model": {"num_blocks": 6}},
        "model.num_blocks=6, parallel.pipeline_axis_size=4: parallel.pipeline_axis_size must divide model.num_blocks. "
        "Set parallel.pipeline_axis_size to 1, 2, 3 or 6, or model.num_blocks to 8.",
    ),
    (
        {"parallel": {"pipeline_axis_size": 2}, "model": {"scan_blocks": False}},
        "pipeline parallelism requires all blocks in one scanned stack. Set model.scan_blocks=true.",
    ),
    (
        {"parallel": {"pipeline_axis_size": 2}, "config": SubModelConfig},
        "a model with a SubModelConfig does not define how its blocks divide into stages",
    ),
    (
        {"parallel": {"pipeline_axis_size": 2}, "trainer": TrainerConfig(pipeline_microbatches=1)},
        "with fewer microbatches than stages, some stages would always be idle. "
        "Set trainer.pipeline_microbatches to 2 or more",
    ),
    (
        {"parallel": {"pipeline_axis_size": 2}, "trainer": TrainerConfig(pipeline_microbatches=6)},
        "trainer.batch_size=8, parallel.pipeline_axis_size=2, trainer.pipeline_microbatches=6: the batch must divide "
        "over lcm(pipeline_axis_size(2), pipeline_microbatches(6)) = 6. "
        "Set trainer.batch_size to 6 or 12.",
    ),
    (
        {"parallel": {"pipeline_axis_size": 4}, "trainer": TrainerConfig(batch_size=6), "model": {"num_blocks": 4}},
        "trainer.batch_size=6, parallel.pipeline_axis_size=4: the batch must divide over pipeline_axis_size(4) = 4.",
    ),
    ({"trainer": TrainerConfig(pipeline_microbatches=4)}, "trainer.pipeline_microbatches=4, parallel.pipeline_axis_"),
    ({"trainer": TrainerConfig(pipeline_remat=True)}, "parallel.pipeline_axis_size=1: there is no pipeline. Set"),
    (
        {"parallel": {"tp_async_dense": True}},
        "parallel.tp_async_dense=true: has no effect if parallel.model_axis_size is 1.",
    ),
    (
        {"parallel": {"model_axis_size": -1, "data_axis_size": 4, "tp_async_dense": True}}
        | {"trainer": TrainerConfig(simulated_devices=4)},
        "has no effect if parallel.model_axis_size is 1, which is inferred here. Set parallel.model_axis_size to 2",
    ),
    (
        {"parallel": {"fsdp_modules": ["Embed"], "fsdp_gather_dtype": "bfloat16"}},
        "parallel.fsdp_gather_dtype='bfloat16': has no effect if parallel.fsdp_axis_size is 1.",
    ),
    (
        {"config": mlstm_v1, "model": {"reset_fgate_value": -5.0}},
        "model.reset_fgate_value=-5.0, model.reset_at_document_boundaries=false: has no effect with this model.reset_at"
        "_document_boundaries. Leave model.reset_fgate_value at -25.0.",
    ),
    ({"trainer": TrainerConfig(remat_policy="dots")}, "nothing is recomputed, because parallel.remat is empty"),
    (
        {"parallel": {"remat": ["mLSTMBlok"]}},
        "parallel.remat='mLSTMBlok': not a module class of this model. Did you mean",
    ),
    (
        {"parallel": {"fsdp_modules": ["Foo"]}},
        "parallel.fsdp_modules='Foo': not a module class of this model. Known: Embed",
    ),
    ({"parallel": {"fsdp_gather_dtype": "bfloat16"}}, "nothing is sharded or gathered, because parallel."),
    (
        {"parallel": {"fsdp_min_weight_size": 5}},
        "parallel.fsdp_min_weight_size=5: nothing is sharded or gathered, because parallel.fsdp_modules is empty. "
        "List modules there, or leave this at 262144.",
    ),
    (
        {"parallel": {"model_axis_size": 4}, "model": {"qkv_proj_blocksize": 128}},
        "model.qkv_proj_blocksize=128, parallel.model_axis_size=4: parallel.model_axis_size must divide the number of "
        "blocks of channels, 2. Set parallel.model_axis_size to 1 or 2.",
    ),
    ({"model": {"vocab_size": 100}}, "model.vocab_size=100, data.name='stdlib': bytes need 256 token ids"),
    (
        {"parallel": {"model_axis_size": 8}},
        "model.num_heads=4, parallel.model_axis_size=8: parallel.model_axis_size must divide model.num_heads. "
        "Set parallel.model_axis_size to 1, 2 or 4",
    ),
    (
        {"parallel": {"model_axis_size": 4}, "config": mlstm_v1, "model": {"round_proj_up_to_multiple_of": 1}},
        "parallel.model_axis_size must divide the feed-forward width, 342",
    ),
    (
        {"parallel": {"model_axis_size": 4}, "model": {"ff_type": "ffn", "ff_round_proj_up_to_multiple_of": 1}},
        "model.ff_proj_factor=1.3333333333333333, parallel.model_axis_size=4: parallel.model_axis_size must divide the "
        "feed-forward width, 171.",
    ),
    (
        {"parallel": {"remat": ["FFNResBlock"]}, "config": mlstm_v1, "model": {"ff_type": None}},
        "parallel.remat='FFNResBlock': not a module class of this model. Did you mean",
    ),
    (
        {"parallel": {"model_axis_size": 8}, "config": llama},
        "model.head_dim=32, parallel.model_axis_size=8: parallel.model_axis_size must divide the number of "
        "heads, 4. Set parallel.model_axis_size to 1, 2 or 4.",
    ),
    (
        {"parallel": {"model_axis_size": 4}, "config": llama, "model": {"ffn_multiple_of": 1}},
        "model.ffn_multiple_of=1, parallel.model_axis_size=4: parallel.model_axis_size must divide the feed-forward "
        "width, 341.",
    ),
    ({"parallel": {"remat": ["mLSTMBlock"]}, "config": llama}, "Did you mean 'AttnBlock'? Known: Embed"),
    (
        {
            "config": llama,
            "model": {"attention_backend": "cudnn"},
            "trainer": TrainerConfig(simulated_devices=1),
        },
        "model.attention_backend='cudnn': cuDNN needs NVIDIA GPUs, not cpu. Set model.attention_",
    ),
    (
        {
            "parallel": {"model_axis_size": 4},
            "config": xlstm,
            "model": {"round_proj_up_to_multiple_of": 2, "slstm_proj_factor": 1.17},
        },
        "model.slstm_proj_factor=1.17, parallel.model_axis_size=4: parallel.model_axis_size must divide the "
        "feed-forward width, 150",
    ),
    (
        {
            "parallel": {"pipeline_axis_size": 4},
            "config": xlstm,
            "model": {"num_blocks": 8, "slstm_at": [3, 7]},
        },
        "parallel.pipeline_axis_size must divide the number of groups of 4 blocks, 2. Set parallel.pipeline_axis_size "
        "to 1 or 2, or model.num_blocks to 16 and model.slstm_at to [3,7,11,15].",
    ),
    (
        {"parallel": {"fsdp_axis_size": 3}},
        "trainer.batch_size=8, parallel.fsdp_axis_size=3: the batch must divide over fsdp_axis_size(3) = 3. "
        "Set trainer.batch_size to 6 or 9.",
    ),
    (
        {"parallel": {"fsdp_axis_size": 4}, "trainer": TrainerConfig(simulated_devices=6)},
        "parallel.fsdp_axis_size=4: fsdp(4) * pp(1) * tp(1) = 4 must divide the number of devices, 6.",
    ),
    ({"scheduler": CosineConfig(warmup_steps=400)}, "scheduler.warmup_steps=400, trainer.max_steps=300: warm-up and"),
    (
        {"scheduler": CosineConfig(warmup_steps=4, cooldown_steps=2, decay_steps=5)},
        "scheduler.warmup_steps=4, scheduler.cooldown_steps=2, scheduler.decay_steps=5: warm-up and",
    ),
    (
        {"checkpoint": CheckpointConfig(keep="best"), "trainer": TrainerConfig(eval_batches=0)},
        "checkpoint.keep='best', trainer.eval_batches=0: the best checkpoint needs a validation loss",
    ),
    (
        {"checkpoint": CheckpointConfig(keep="best", save_every_n_steps=50)},
        "every saved step needs a validation loss. Set trainer.eval_every_n_steps to 5, 10, 25 or 50.",
    ),
    (
        {"config": SubModelConfig},
        "its config SubModelConfig needs a field vocab_size, which determines the shape of the data",
    ),
    ({"config": ConfigDict}, "its config must be a subclass of xlstm_hydra.configs.SubModelConfig, not Config"),
]


@pytest.mark.parametrize(("values", "words"), BETWEEN, ids=[words[:50] for _, words in BETWEEN])
def test_inconsistent_groups_are_refused_with_complete_keys(values, words):
    problems = broken(run, **values)
    assert any(words in text for text in problems), problems


@pytest.mark.parametrize("model_class", [None, 3, "", "a b", "a..B", "a.B()"], ids=repr)
def test_a_model_class_must_be_a_class_or_its_path(model_class):
    text = "model_class: expected a class or its dotted path, got "
    assert any(problem.startswith(text) for problem in broken(ModelConfig, model_class=model_class))


@pytest.mark.parametrize(
    "other", [ParallelConfig(), AdamWConfig(), LoggerConfig()], ids=lambda other: type(other).__name__
)
def test_a_config_of_another_group_is_not_a_model_config(other):
    text = f"model_config: must be the config of a model, got a {type(other).__name__}. Derive your own config from "
    [problem] = broken(ModelConfig, model_class="a.B", model_config=other)
    assert problem.startswith(text)


def test_without_mlstm_blocks_the_rules_of_the_mlstm_do_not_apply():
    config = xlstm(slstm_at=[1, 0], num_heads=6, embedding_dim=132, context_length=50, vocab_size=258)
    assert config.slstm_at == [0, 1] and not list(config.layout_rules(3))


@pytest.mark.parametrize(
    ("num_blocks", "slstm_at", "period"),
    [(8, [], 1), (8, [7], 8), (8, [3, 7], 4), (6, [0, 2, 4], 2), (6, [0, 3], 3), (4, [0, 1, 2, 3], 1), (7, [1], 7)],
)
def test_the_period_is_the_shortest_after_which_the_kinds_of_blocks_repeat(num_blocks, slstm_at, period):
    assert xlstm(num_blocks=num_blocks, slstm_at=slstm_at).scan_period() == period


def test_a_task_that_reads_no_data_does_not_check_it():
    small = {"vocab_size": 32, "context_length": 16, "chunk_size": 16}
    data = SyntheticDataConfig(motif_length=16), StdlibDataConfig()
    task = generate(prompt_tokens=[1])
    for source in data:
        assert broken(run, model=small, data=source)
        run(model=small, data=source, task=task, parallel={"data_axis_size": 3})


def test_a_default_run_breaks_no_rule():
    assert run().parallel == ParallelConfig()
    assert run(config=mlstm_v1).schedule_steps == 300


@pytest.mark.parametrize(
    ("sizes", "num_devices", "expected"),
    [
        ({}, 8, {"dp": 8, "fsdp": 1, "pp": 1, "tp": 1}),
        ({"fsdp_axis_size": 4}, 8, {"dp": 2, "fsdp": 4, "pp": 1, "tp": 1}),
        ({"data_axis_size": 1, "fsdp_axis_size": -1, "model_axis_size": 2}, 8, {"dp": 1, "fsdp": 4, "pp": 1, "tp": 2}),
    ],
    ids=["all data", "data inferred", "fsdp inferred"],
)
def test_the_open_axis_takes_the_devices_that_are_left(sizes, num_devices, expected):
    assert ParallelConfig(**sizes).axis_sizes(num_devices) == expected


def test_sizes_that_do_not_give_the_number_of_devices_are_refused_with_those_that_do():
    layout = ParallelConfig(data_axis_size=2, fsdp_axis_size=3)
    problems = broken(layout.axis_sizes, num_devices=8)
    assert problems == [
        "data_axis_size=2, fsdp_axis_size=3: dp(2) * fsdp(3) * pp(1) * tp(1) = 6 must equal the number of devices, 8. "
        "Sizes that divide 8: 1, 2, 4 or 8."
    ]


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (mlstm, {"gate_soft_cap": -1.0, "logits_soft_cap": -30.0}),
        (mlstm, {"add_embedding_dropout": True, "dropout": 0.0}),
        (llama, {"attention_backend": "pallas_triton"}),
    ],
    ids=["negative caps", "dropout of nothing", "kernel of others"],
)
def test_the_published_runs_can_be_configured(make, values):
    config = make(**values)
    assert {name: getattr(config, name) for name in values} == values
