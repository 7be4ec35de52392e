"""Names that other programs use for our fields."""

import dataclasses

import pytest

from xlstm_hydra import configs
from xlstm_hydra.configs import (
    AdamWConfig,
    ConfigDict,
    ConfigError,
    LlamaConfig,
    ModelConfig,
    RunConfig,
    TrainerConfig,
    mLSTMv1Config,
)
from xlstm_hydra.synonyms import SYNONYMS, meant, same_meaning

CLASSES = [cls for cls in vars(configs).values() if isinstance(cls, type) and issubclass(cls, ConfigDict)]
FIELDS = {cls.__name__: [field.name for field in dataclasses.fields(cls)] for cls in CLASSES}


@pytest.mark.parametrize(
    ("cls", "name", "field"),
    [
        (mLSTMv1Config, "num_layers", "num_blocks"),
        (mLSTMv1Config, "n_layer", "num_blocks"),
        (mLSTMv1Config, "hidden_size", "embedding_dim"),
        (mLSTMv1Config, "d_model", "embedding_dim"),
        (mLSTMv1Config, "num_attention_heads", "num_heads"),
        (mLSTMv1Config, "block_size", "context_length"),
        (mLSTMv1Config, "tie_word_embeddings", "tie_weights"),
        (mLSTMv1Config, "n_vocab", "vocab_size"),
        (mLSTMv1Config, "intermediate_size", "proj_factor"),
        (mLSTMv1Config, "precision", "dtype"),
        (LlamaConfig, "num_heads", "head_dim"),
        (AdamWConfig, "learning_rate", "lr"),
        (AdamWConfig, "wd", "weight_decay"),
        (AdamWConfig, "adam_beta1", "beta1"),
        (AdamWConfig, "max_grad_norm", "grad_clip_norm"),
        (TrainerConfig, "max_iters", "max_steps"),
        (TrainerConfig, "Train-Steps", "max_steps"),
        (TrainerConfig, "global_batch_size", "batch_size"),
        (TrainerConfig, "gradient_accumulation_steps", "gradient_accumulate_steps"),
        (configs.CosineConfig, "num_warmup_steps", "warmup_steps"),
        (configs.ParallelConfig, "tensor_parallel_size", "model_axis_size"),
        (configs.ParallelConfig, "pp_size", "pipeline_axis_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_field_name_of_another_program_suggests_ours(cls, name, field):
    with pytest.raises(ConfigError) as caught:
        ConfigDict.from_dict(cls, {name: 1}, ignore_extensive_attributes=False)
    assert any(f"Did you mean {field!r}?" in str(problem) for problem in caught.value.problems)


def test_an_unknown_field_that_another_part_of_the_config_has_is_found_there():
    run = RunConfig(model=ModelConfig("a.B", model_config=mLSTMv1Config(embedding_dim=64, num_blocks=1, num_heads=1)))
    data = run.to_dict() | {"learning_rate": 1}
    data["trainer"] |= {"lr": 1, "num_layers": 2, "steps": 3}
    with pytest.raises(ConfigError) as caught:
        ConfigDict.from_dict(RunConfig, data, ignore_extensive_attributes=False)
    assert sorted(map(str, caught.value.problems)) == [
        "learning_rate: no such field in RunConfig. Did you mean optimizer.lr?",
        "trainer.lr: no such field in TrainerConfig. Did you mean optimizer.lr?",
        "trainer.num_layers: no such field in TrainerConfig. Did you mean model.model_config.num_blocks?",
        "trainer.steps: no such field in TrainerConfig. Did you mean 'max_steps'?",
    ]


def test_every_field_in_the_table_exists():
    assert SYNONYMS.keys() <= {name for names in FIELDS.values() for name in names}


@pytest.mark.parametrize("names", FIELDS.values(), ids=FIELDS)
def test_only_fields_that_a_config_has_are_suggested(names):
    words = {word for text in SYNONYMS.values() for word in text.split()}
    assert all(meant(word, names) in (None, *names) for word in words)


def test_no_synonym_is_listed_twice_for_a_field():
    assert all(len(set(text.split())) == len(text.split()) for text in SYNONYMS.values())


def test_a_key_of_the_same_name_comes_before_one_of_the_same_meaning():
    paths = ["optimizer.lr", "trainer.seed", "data.seed", "model.num_blocks"]
    assert same_meaning("seed", paths) == ["trainer.seed", "data.seed"]
    assert same_meaning("learning_rate", paths) == ["optimizer.lr"]
    assert same_meaning("zzz", paths) == []
