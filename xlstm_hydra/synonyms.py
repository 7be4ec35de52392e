"""Names that other programs for training language models use for our fields."""

from __future__ import annotations

from collections.abc import Iterable

SYNONYMS: dict[str, str] = {
    # the model
    "num_blocks": "num_layers n_layer n_layers num_hidden_layers layers depth num_layer n_block n_blocks",
    "embedding_dim": "hidden_size hidden_dim d_model n_embd n_embed embed_dim embedding_size emb_dim model_dim dim "
    "width hidden d_embed",
    "num_heads": "n_head n_heads num_attention_heads num_head heads nheads attention_heads",
    "head_dim": "num_heads n_head n_heads num_attention_heads head_size d_head dim_head",
    "context_length": "seq_len seq_length sequence_length max_seq_len max_seq_length max_sequence_length block_size "
    "context context_size context_window ctx_len n_ctx max_length max_position_embeddings n_positions max_len seqlen",
    "vocab_size": "n_vocab vocab vocabulary_size num_tokens num_embeddings vocab_dim padded_vocab_size",
    "tie_weights": "tie_word_embeddings tie_embeddings tied_embeddings weight_tying share_embeddings",
    "proj_factor": "intermediate_size ffn_dim ffn_hidden_size mlp_dim d_ff ff_dim ffn_proj_factor mlp_ratio ff_mult "
    "expansion_factor expand hidden_dim_factor ffn_factor",
    "ffn_dim_multiplier": "proj_factor intermediate_size ffn_dim ffn_hidden_size mlp_dim d_ff ff_dim mlp_ratio ff_mult "
    "ffn_factor",
    "act_fn": "activation hidden_act activation_function act ffn_activation mlp_activation nonlinearity",
    "norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon norm_epsilon ln_eps",
    "norm_type": "norm normalization norm_layer layer_norm_type",
    "dropout": "dropout_rate dropout_p p_dropout resid_pdrop residual_dropout hidden_dropout_prob drop_rate drop",
    "dropout_rate": "dropout dropout_p p_dropout resid_pdrop residual_dropout hidden_dropout_prob drop_rate drop",
    "bias": "use_bias add_bias",
    "use_bias": "bias add_bias",
    "theta": "rope_theta rope_base rotary_base",
    "dtype": "precision param_dtype torch_dtype compute_dtype mixed_precision activation_dtype bf16 fp16",
    "logits_soft_cap": "final_logit_softcapping logit_softcap output_logit_soft_cap logit_soft_cap",
    "gate_soft_cap": "gate_softcap gate_softcapping",
    "chunk_size": "chunk_len chunk_length chunkwise_size",
    "backend": "kernel kernel_backend mlstm_backend chunkwise_kernel",
    "attention_backend": "attn_implementation attention_implementation flash_attention use_flash_attention backend "
    "attn_impl",
    "conv1d_kernel_size": "conv_kernel conv_size kernel_size d_conv",
    "scan_blocks": "scan_layers use_scan",
    # optimizer and schedule
    "lr": "learning_rate peak_lr max_lr base_lr init_lr learningrate peak_learning_rate step_size alpha",
    "weight_decay": "wd decay weightdecay l2 adam_weight_decay",
    "beta1": "b1 adam_beta1 betas beta_1 betas.0",
    "beta2": "b2 adam_beta2 betas beta_2",
    "eps": "epsilon adam_eps adam_epsilon",
    "momentum": "mu",
    "grad_clip_norm": "grad_clip clip_grad_norm max_grad_norm gradient_clip_val gradient_clip clip_norm clip_grad clip "
    "grad_norm_clip gradient_clipping global_norm max_norm",
    "grad_clip_value": "clip_grad_value clip_value",
    "warmup_steps": "warmup num_warmup_steps warmup_iters lr_warmup_steps warm_up warmup_step warmup_updates n_warmup",
    "cooldown_steps": "cooldown num_cooldown_steps cooldown_iters",
    "decay_steps": "lr_decay_iters lr_decay_steps num_training_steps t_max decay_iters num_decay_steps",
    "end_lr_factor": "min_lr min_lr_ratio end_lr final_lr lr_min eta_min min_learning_rate final_lr_factor "
    "lr_end_factor",
    # training
    "max_steps": "num_steps steps max_iters max_iter num_iters iterations train_steps total_steps training_steps "
    "num_train_steps num_training_steps max_train_steps n_steps max_updates train_iters num_iterations",
    "batch_size": "batch global_batch_size train_batch_size bs total_batch_size bsz batchsize batch_size_train "
    "per_device_train_batch_size micro_batch_size per_device_batch_size",
    "gradient_accumulate_steps": "gradient_accumulation_steps grad_accum grad_accum_steps accumulate_grad_batches "
    "gradient_accumulation accumulation_steps grad_acc num_accumulation_steps accum_steps accumulate_steps "
    "grad_acc_steps",
    "eval_every_n_steps": "eval_every eval_interval eval_steps eval_freq val_check_interval eval_iters val_every "
    "validate_every val_interval check_val_every_n_steps",
    "eval_batches": "eval_iters num_eval_batches val_batches limit_val_batches num_val_batches max_eval_steps",
    "seed": "random_seed rng_seed global_seed manual_seed",
    "check_for_nan": "detect_nan stop_on_nan nan_check detect_anomaly",
    "pipeline_microbatches": "num_microbatches microbatches micro_batches n_microbatches num_micro_batches",
    "log_every_n_steps": "log_every log_interval logging_steps log_freq log_steps print_every",
    "save_every_n_steps": "save_every save_steps save_interval checkpoint_every ckpt_every checkpoint_interval "
    "save_freq every_n_steps ckpt_interval",
    "max_to_keep": "save_total_limit save_top_k keep_last keep_last_n max_checkpoints num_to_keep keep_n",
    "restore": "resume resume_from resume_from_checkpoint load load_checkpoint resume_path",
    "init_from": "pretrained finetune_from from_pretrained pretrained_path load_weights init_checkpoint load_from",
    # data
    "path": "data_path data_dir dataset_path file files folder dir root train_path dataset train_file data_files",
    "validation_fraction": "val_split val_fraction validation_split test_size val_size valid_fraction",
    "prefetch": "prefetch_factor num_prefetch prefetch_size num_workers prefetch_buffer_size",
    # the layout
    "data_axis_size": "dp dp_size data_parallel data_parallel_size num_replicas dp_replicate dp_degree replicas "
    "data_parallel_replicate_degree ici_data_parallelism dcn_data_parallelism",
    "fsdp_axis_size": "fsdp fsdp_size dp_shard shards fsdp_degree zero sharding data_parallel_shard_degree "
    "ici_fsdp_parallelism num_shards",
    "model_axis_size": "tp tp_size tensor_parallel tensor_parallel_size model_parallel model_parallel_size mp mp_size "
    "tensor_axis_size tp_axis_size tensor_model_parallel_size tensor_parallel_degree ici_tensor_parallelism",
    "pipeline_axis_size": "pp pp_size pipeline_parallel pipeline_parallel_size num_stages stages pp_axis_size "
    "pipeline_model_parallel_size pipeline_parallel_degree",
    "remat": "gradient_checkpointing activation_checkpointing checkpointing use_remat activation_checkpoint "
    "gradient_checkpoint recompute",
    "fsdp_gather_dtype": "gather_dtype fsdp_param_dtype mixed_precision_param",
    "fsdp_grad_scatter_dtype": "grad_dtype scatter_dtype reduce_dtype grad_scatter_dtype mixed_precision_reduce",
    "tp_async_dense": "async_tp enable_async_tensor_parallel collective_matmul",
    # processes, devices and tasks
    "num_processes": "world_size n_processes nprocs",
    "process_id": "rank node_rank process_index",
    "coordinator_address": "master_addr init_method coordinator master_address",
    "num_devices": "n_devices num_gpus n_gpus gpus devices num_chips",
    "simulated_devices": "num_devices n_devices fake_devices num_cpu_devices host_devices devices",
    "max_new_tokens": "max_tokens num_tokens max_gen_len max_length n_tokens",
    "num_samples": "n_samples num_return_sequences n",
    "temperature": "temp",
    "timeout_min": "time time_limit walltime timeout",
    "gpus_per_node": "num_gpus n_gpus gpus",
    "mem_gb": "mem memory",
}
"""For each field, its names in other programs, separated by spaces. A name may be listed for several fields if every
config has at most one of these fields."""


def meant(name: str, known: Iterable[str]) -> str | None:
    """Return the field in `known` for which another program uses `name`: the first match in the table, or None."""
    given, known = _plain(name), {*known}
    found = (field for field, words in SYNONYMS.items() if field in known and given in words.split())
    return next(found, None)


def same_meaning(name: str, paths: Iterable[str]) -> list[str]:
    """Return the dotted keys in `paths` whose last part is `name` or, if there are none, the field for which another
    program uses `name`."""
    last = {path: path.rpartition(".")[2] for path in paths}
    found = [path for path in last if last[path] == name]
    wanted = None if found else meant(name, last.values())
    return found or [path for path in last if last[path] == wanted]


def _plain(name: str) -> str:
    return name.strip("-").replace("-", "_").lower()
