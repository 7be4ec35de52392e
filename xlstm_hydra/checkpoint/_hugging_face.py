"""Conversion of the config and the parameters of Hugging Face's `xLSTMForCausalLM`, the counterpart of `mLSTMv1`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_hydra.configs import ModelConfig, mLSTMv1Config
from xlstm_hydra.formats import MetadataError, log_ignored, parse
from xlstm_hydra.parallel import Parameter
from xlstm_hydra.problems import ConfigError, Problem, nearest, show
from xlstm_hydra.runs import CONFIG

from ._leaves import SafetensorsLeaves
from ._parts import BLOCKS, NotOurs, Part, all_blocks, outer_and_block_parameters

MODEL_CLASS = "xlstm_hydra.models.mLSTMv1"
_HAS: dict[str, Any] = {
    "norm_type": "rmsnorm",
    "cell_norm_type_v1": "layernorm",
    "add_qk_norm": False,
    "add_post_norm": False,
    "add_post_blocks_norm": True,
    "tie_weights": False,
    "ff_type": "ffn_gated",
    "act_fn": "swish",
}
"""Our config fields without a Hugging Face counterpart, with the value that all Hugging Face models have."""
_SAME = {
    "vocab_size": "vocab_size",
    "embedding_dim": "hidden_size",
    "num_blocks": "num_hidden_layers",
    "num_heads": "num_heads",
    "bias": "use_bias",
    "qk_dim_factor": "qk_dim_factor",
    "v_dim_factor": "v_dim_factor",
    "chunk_size": "chunk_size",
    "gate_soft_cap": "gate_soft_cap",
    "logits_soft_cap": "output_logit_soft_cap",
    "norm_eps": "norm_eps",
    "cell_norm_eps": "norm_eps",
    "cell_eps": "eps",
}
"""Names of our config fields, with the names of the same fields at Hugging Face."""
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_heads": 8,
    "use_bias": False,
    "qk_dim_factor": 0.5,
    "v_dim_factor": 1.0,
    "chunk_size": 64,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "norm_eps": 1e-6,
    "eps": 1e-6,
    "ffn_proj_factor": 2.667,
    "ffn_round_up_to_multiple_of": 64,
    "dtype": "float32",
}
"""Hugging Face fields with their default values."""
_WIDTH = ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of")
_OURS = tuple(field.name for field in fields(mLSTMv1Config) if field.name not in (*_SAME, *_HAS, *_WIDTH))
"""Our config fields that Hugging Face models do not use. They are exported under `xlstm_hydra`, so that the model can
be imported again. Dtypes are among them: Hugging Face computes in the dtype of the loaded weights."""
_SIZES = ("hidden_size", "ffn_proj_factor", "ffn_round_up_to_multiple_of", "chunk_size", "context_length")
"""Fields from which other values are computed. They must be positive."""
_ONLY: dict[str, Any] = {
    "model_type": "xlstm",
    "weight_mode": "single",
    "tie_word_embeddings": False,
    "add_out_norm": True,
    "architectures": ["xLSTMForCausalLM"],
}
"""Hugging Face fields with only one supported value, and that value."""
_NO_CAP = ("gate_soft_cap", "output_logit_soft_cap")
"""Hugging Face fields for which null means no soft cap, not the default value."""
_TIED = "tie_word_embeddings"
_HEAD = "lm_head.weight"
_ALIASES = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks", "dtype": "torch_dtype"}
_IGNORED = (
    # implementation choices at Hugging Face
    "chunkwise_kernel sequence_kernel step_kernel mode return_last_states autocast_kernel_dtype inference_state_dtype "
    "max_inference_chunksize norm_reduction_force_float32 use_cache "
    # written by earlier versions and never read
    "add_embedding_dropout add_forward_backend_padding add_post_blocks_norm add_post_norm add_qk_norm cell_norm_eps "
    "force_bos_token_insert head_dim igate_bias_init_range mlstm_round_up_to_multiple_of "
    # fields of every model: tokens, files, outputs
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix "
    "transformers_version _name_or_path _attn_implementation_autoset auto_map finetuning_task task_specific_params "
    "problem_type id2label label2id is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size "
    "tie_encoder_decoder output_attentions output_hidden_states return_dict chunk_size_feed_forward torchscript "
    "use_bfloat16 tf_legacy_loss pruned_heads "
    # generation settings of earlier versions
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens"
).split()
"""Hugging Face fields that do not affect the logits."""
_KNOWN = {*_DEFAULTS, *_ONLY, *_ALIASES.values(), *_IGNORED, "xlstm_hydra"}


def write_config(model: ModelConfig, *, one_document_per_row: bool = False) -> dict[str, Any]:
    """Return the content of Hugging Face's `config.json` for a model.

    Args:
        model: the model config; `model_class` must be the class itself.
        one_document_per_row: allow a model whose state is reset at document boundaries within a row. Hugging Face's
        xLSTM never resets its state within a row.

    Raises:
        ConfigError: Hugging Face's xLSTM does not support the model. The error lists every unsupported field.
    """
    config = model.model_config
    if not isinstance(config, mLSTMv1Config):
        text = "Hugging Face's xLSTM does not have this model class"
        raise ConfigError([Problem.about(model.class_path(), text, f"Supported: {MODEL_CLASS}.")])
    if problems := [problem.at("model") for problem in _inexpressible(config, one_document_per_row)]:
        raise ConfigError(problems)
    width, multiple = config.ff_dim(), config.round_proj_up_to_multiple_of
    content = {theirs: config.get(ours) for ours, theirs in _SAME.items()}
    # Hugging Face rounds the widths of its caches up to multiples of 64, so other widths do not fit.
    has_cache = config.qk_dim() % 64 == config.v_dim() % 64 == 0
    return {
        **_ONLY,
        **content,
        "embedding_dim": config.embedding_dim,
        "num_blocks": config.num_blocks,
        # Gives the exact width, because Hugging Face rounds widths differently.
        "ffn_proj_factor": width / config.embedding_dim,
        "ffn_round_up_to_multiple_of": multiple if multiple > 1 else width,
        "autocast_kernel_dtype": config.dtype,
        "dtype": "float32",  # of the arrays
        "use_cache": has_cache,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "xlstm_hydra": {key: config.get(key) for key in _OURS},
    }


def _inexpressible(config: mLSTMv1Config, one_document_per_row: bool) -> Iterator[Problem]:
    if config.reset_at_document_boundaries and not one_document_per_row:
        text = "Hugging Face's xLSTM does not reset its state between the documents of a row"
        fix = "If the exported model will only be used on rows with one document, add --one-document-per-row."
        yield Problem({"reset_at_document_boundaries": True}, text, fix)
    for key, value in _HAS.items():
        if config.get(key) != value:
            yield Problem({key: config.get(key)}, f"Hugging Face's xLSTM only supports {show(value)}")
    for key in ("gate_soft_cap", "logits_soft_cap"):
        if config.get(key) is None:
            yield Problem({key: None}, "must be a number, because Hugging Face's xLSTM always has a soft cap")
    if config.norm_eps != config.cell_norm_eps:
        given = {"norm_eps": config.norm_eps, "cell_norm_eps": config.cell_norm_eps}
        yield Problem(given, "must be equal, because Hugging Face's xLSTM uses one value for both")


def is_hugging_face(folder: Path) -> bool:
    """True if a folder contains a Hugging Face model. False for a run folder, which may also have a file
    `config.json`."""
    return (folder / CONFIG).is_file() and not (folder / "checkpoints").is_dir()


def read_config(folder: Path, *, lenient: bool = False) -> ModelConfig:
    """Read the config of a Hugging Face model, and convert it to a `ModelConfig` with the class as a dotted path.

    Fields without a Hugging Face counterpart, such as the initialization, get their default values.

    Args:
        folder: the folder of the model.
        lenient: ignore unknown fields, with a warning.

    Raises:
        ConfigError: the folder does not contain an xLSTM model, or the model is not supported.
    """
    file = folder / CONFIG
    try:
        found = parse(file.read_bytes())
    except (OSError, MetadataError) as error:
        raise ConfigError([_problem(file, f"cannot be read: {error}")]) from None
    if (kind := found.get("model_type")) != _ONLY["model_type"]:
        text = f"model_type: expected {_ONLY['model_type']!r}, got {kind!r}"
        raise ConfigError([_problem(file, f"{text}. Other Hugging Face models are not supported")])
    strangers = [key for key in found if key not in _KNOWN]
    unknown = [key for key in strangers if found[key] is not None]
    if problems := [_problem(file, text) for text in (*_unknown([] if lenient else unknown), *_wrong(found))]:
        raise ConfigError(problems)
    log_ignored(str(file), [key for key in strangers if key not in unknown], unknown)
    said = {key: value for key, value in found.items() if value is not None or key in _NO_CAP}
    said = {key: said[alias] for key, alias in _ALIASES.items() if alias in said} | said
    content = {key: said.get(key, default) for key, default in _DEFAULTS.items()}
    tied = bool(found.get(_TIED)) and _HEAD not in SafetensorsLeaves(folder).shapes
    try:
        return ModelConfig(MODEL_CLASS, model_config=_config(content, said.get("xlstm_hydra", {}), tied))
    except ConfigError as error:
        problems = error.problems
    except (TypeError, ValueError) as error:
        problems = [Problem.about("", str(error))]
    raise ConfigError(_problem(file, str(_as_in_file(problem))) for problem in problems)


def _as_in_file(problem: Problem) -> Problem:
    """Return a problem of our config with the keys as named in Hugging Face's file."""
    names = _SAME | {"proj_factor": "ffn_proj_factor", "round_proj_up_to_multiple_of": "ffn_round_up_to_multiple_of"}

    def rename(text: str) -> str:
        for ours, theirs in names.items():
            text = text.replace(f"{{{ours}}}", f"{{/{theirs}}}")
        return text

    given = {f"/{names.get(key, key)}": value for key, value in zip(problem.keys, problem.given.values(), strict=True)}
    return replace(problem, given=given, rule=rename(problem.rule), fix=rename(problem.fix), prefix="")


def _unknown(keys: list[str]) -> Iterator[str]:
    """Yield a message for each unknown field. The last message names the option that ignores unknown fields."""
    for key in keys:
        way = " --lenient (in Python, lenient=True) ignores unknown fields." if key == keys[-1] else ""
        yield f"{key}: no such field. {_hint(key)}{way}"


def _wrong(found: dict[str, Any]) -> Iterator[str]:
    """Yield messages about invalid values of known fields, before any field is converted."""
    said = {key: value for key, value in found.items() if value is not None}
    for key, value in _ONLY.items():
        if key != _TIED and said.get(key, value) != value:
            yield f"{key}: expected {value!r}, got {said[key]!r}"
    if not isinstance(said.get(_TIED, False), bool):
        yield f"{_TIED}: expected true or false, got {show(said[_TIED])}"
    for key, default in _DEFAULTS.items():
        if key in found and key not in said and key not in (*_NO_CAP, *_ALIASES):
            yield f"{key}: expected a value, got null. If the field is absent, it defaults to {show(default)}"
    for key, alias in _ALIASES.items():
        if key in said and said.get(alias, said[key]) != said[key]:
            yield f"{key}={show(said[key])}, {alias}={show(said[alias])}: both set the same field and must be equal"


def _hint(key: str) -> str:
    near = nearest(key, _KNOWN)
    return near if near.startswith("Did") else "Remove it if it does not change the model."


def _problem(file: Path, text: str) -> Problem:
    return Problem.about("", f"{file}: {text}")


def _config(content: dict[str, Any], own: Any, tied: bool) -> mLSTMv1Config:
    dim, multiple, dtype = content["hidden_size"], content["ffn_round_up_to_multiple_of"], content["dtype"]
    if not isinstance(own, dict):
        raise ValueError(f"xlstm_hydra: expected an object, got {show(own)}")
    for key in own.keys() - set(_OURS):
        raise ValueError(f"xlstm_hydra.{key}: no such field. {nearest(key, _OURS)}")
    own = {"context_length": 2048, "dtype": dtype, "gate_dtype": dtype, "lm_head_dtype": dtype} | own
    for key, value in (content | own).items():
        if key in _SIZES and not (type(value) in (int, float) and 0 < value < math.inf):
            raise ValueError(f"{key}: expected a number greater than 0, got {show(value)}")
    chunk_size = content["chunk_size"]
    if own.get("backend", "chunkwise") == "chunkwise":
        chunk_size = math.gcd(chunk_size, own["context_length"])
    width = int((dim * content["ffn_proj_factor"] + multiple - 1) // multiple * multiple)
    fields = {ours: content[theirs] for ours, theirs in _SAME.items()} | {
        "chunk_size": chunk_size,
        "proj_factor": width / dim,
        "round_proj_up_to_multiple_of": multiple,
        "tie_weights": tied,
        **own,
    }
    config = mLSTMv1Config.from_dict(mLSTMv1Config, fields, ignore_extensive_attributes=False)
    if config.ff_dim() != width:  # our rounding went one multiple too high
        config = mLSTMv1Config.from_dict(mLSTMv1Config, fields | {"proj_factor": (width - multiple / 2) / dim})
    return config


_LAYER, _FFN = "xlstm_res_block.xlstm", "ffn_res_block.ffn"
_MODULES = {
    "token_embedding": "backbone.embeddings",
    "lm_head.out_norm": "backbone.out_norm",
    "lm_head.out_dense": "lm_head",
    "xlstm_res_block.xlstm_norm": "norm_mlstm",
    f"{_LAYER}.dense_q": "mlstm_layer.q",
    f"{_LAYER}.dense_k": "mlstm_layer.k",
    f"{_LAYER}.dense_v": "mlstm_layer.v",
    f"{_LAYER}.dense_o": "mlstm_layer.ogate_preact",
    f"{_LAYER}.igate": "mlstm_layer.igate_preact",
    f"{_LAYER}.fgate": "mlstm_layer.fgate_preact",
    f"{_LAYER}.outnorm": "mlstm_layer.multihead_norm",
    f"{_LAYER}.proj_down": "mlstm_layer.out_proj",
    "ffn_res_block.ffn_norm": "norm_ffn",
    f"{_FFN}.proj_up_gate": "ffn.proj_up_gate",
    f"{_FFN}.proj_up": "ffn.proj_up",
    f"{_FFN}.proj_down": "ffn.proj_down",
}
"""Names of our modules, outside and inside the blocks, with the names of the same modules at Hugging Face."""
_BLOCK = "backbone.blocks."
_NORMS = ("norm_mlstm", "mlstm_layer.multihead_norm", "norm_ffn")
"""Hugging Face norms that have a bias if the dense layers have one."""


def hugging_face_parts(model: ModelConfig) -> list[Part]:
    """Return the mapping from the arrays of a Hugging Face model to the parameters of `model`."""
    outer, block = outer_and_block_parameters(model)
    config: Any = model.model_config
    names = [f"{_BLOCK}{index}" for index in range(config.num_blocks)]
    inside = [_part(parameter) for parameter in block]
    if config.bias:
        widths = (config.embedding_dim, config.v_dim(), config.embedding_dim)
        inside += [Part((), {f"{norm}.bias": (width,)}, _no_bias) for norm, width in zip(_NORMS, widths, strict=True)]
    return [_part(parameter) for parameter in outer] + [all_blocks(part, names, config.num_blocks) for part in inside]


def _part(parameter: Parameter) -> Part:
    """Return the part of one parameter. At Hugging Face, dense kernels are transposed, and the scales of a norm are
    flat."""
    module, _, leaf = parameter.path.rpartition(".")
    name = f"{_MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    if leaf == "kernel":
        return Part((parameter.path,), {name: parameter.shape[::-1]}, lambda x: [x.T])
    shape = (math.prod(parameter.shape),) if leaf == "scale" else parameter.shape
    return Part((parameter.path,), {name: shape}, lambda x: [x.reshape(parameter.shape)])


def _no_bias(x: np.ndarray) -> list[np.ndarray]:
    if x.any():
        raise NotOurs("has nonzero values, but the norms in xlstm-hydra have no bias")
    return []


def written_arrays(model: ModelConfig, arrays: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Convert the parameters of a model, with stacked blocks, to the arrays of a Hugging Face model.

    Yields:
        The name and the array of each tensor.
    """
    by_path = {path: part for part in hugging_face_parts(model) for path in part.into}
    for path, array in arrays:
        transposed, blocks = path.endswith(".kernel"), path.startswith(f"{BLOCKS}.")
        names = by_path[path].leaves.items()
        for (name, shape), one in zip(names, array if blocks else [array], strict=True):
            yield name, one.T if transposed else one.reshape(shape)
    for part in hugging_face_parts(model):
        if not part.into:  # norm biases, which our models do not have
            yield from ((name, np.zeros(shape, np.float32)) for name, shape in part.leaves.items())
