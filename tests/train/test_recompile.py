"""Fields that need another compiled program and fields that do not. The jobs of a sweep share compiled programs."""

import dataclasses
import pathlib
import re

import jax
import pytest
from tiny import LAYOUTS, tiny_run

from xlstm_hydra.configs import (
    AdamWConfig,
    CheckpointConfig,
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    LionConfig,
    LoggerConfig,
    SGDConfig,
    StdlibDataConfig,
    SyntheticDataConfig,
    TrainerConfig,
    effect_of,
)
from xlstm_hydra.step import build_program

NUMBERS = {"lr": 0.5, "weight_decay": 0.0, "grad_clip_norm": 0.25, "grad_clip_value": 0.5}
SCHEDULE = {"warmup_steps": 3, "cooldown_steps": 2, "cooldown_lr_factor": 0.2, "decay_steps": 9}
SAME = {
    AdamWConfig: NUMBERS | {"beta1": 0.5, "beta2": 0.5, "eps": 1e-3},
    LionConfig: NUMBERS | {"beta1": 0.5, "beta2": 0.5},
    SGDConfig: NUMBERS | {"momentum": 0.5},
    ConstantConfig: SCHEDULE | {"name": "constant"},
    CosineConfig: SCHEDULE | {"end_lr_factor": 0.5, "name": "cosine"},
    LinearConfig: SCHEDULE | {"end_lr_factor": 0.5, "name": "linear"},
    ExponentialConfig: SCHEDULE | {"end_lr_factor": 0.5, "name": "exponential"},
    TrainerConfig: {
        **{"max_steps": 20, "seed": 2**32 - 1, "eval_every_n_steps": 3, "eval_batches": 2, "check_for_nan": False},
        **{"ignore_plan": True, "compilation_cache_dir": None},
    },
    StdlibDataConfig: {"name": "stdlib", "seed": 7, "validation_fraction": 0.5, "prefetch": 0, "pad_last": False},
    SyntheticDataConfig: {
        **{"name": "synthetic", "seed": 7, "validation_fraction": 0.5, "prefetch": 0},
        **{"num_examples": 50, "motif_length": 3},
    },
    LoggerConfig: {"log_every_n_steps": 3, "progress": False, "verbose": True, "csv": False, "tensorboard": True},
    CheckpointConfig: {
        **{"save_every_n_steps": 3, "save_last": True, "max_to_keep": 2, "keep": "best", "async_save": False},
        **{"restore": None, "init_from": None, "lenient": False, "verify": False},
    },
}
"""Another value of every field that does not need another program."""

OTHER = {
    AdamWConfig: "name nesterov weight_decay_include weight_decay_exclude",
    LionConfig: "name weight_decay_include weight_decay_exclude",
    SGDConfig: "name nesterov weight_decay_include weight_decay_exclude",
    TrainerConfig: "batch_size gradient_accumulate_steps pipeline_microbatches pipeline_remat remat_policy"
    " simulated_devices debug_nans",
}
"""Fields that need another program, besides those of the model and the layout."""

OF_THE_PROCESS = {"simulated_devices", "debug_nans"}
"""Fields of these that change JAX settings of the whole process, but no step on the same devices."""

ON = {SGDConfig: {"momentum": 0.9}}
"""Features that are on before the change. Turning momentum or clipping on or off needs another program."""

DP8 = {"parallel": LAYOUTS["dp8"], "model": {"vocab_size": 256}}


@pytest.mark.parametrize("config", SAME, ids=lambda config: config.__name__)
def test_every_field_is_listed_as_needing_another_program_or_not(config):
    names = {field.name for field in dataclasses.fields(config)}
    other = set(OTHER.get(config, "").split())
    assert names == set(SAME[config]) | other
    assert {name for name in names if effect_of(config, name).compiled} == other - OF_THE_PROCESS


def lowered(run):
    """Lowered steps of a run."""
    program = build_program(run)
    step = program.train_step.lower(program.abstract_state, program.abstract_batch, program.abstract_numbers)
    init = program.init_step.lower(program._seed, None)
    return [step, init, program.eval_step.lower(program.abstract_state.params, program.abstract_batch)]


def text(stages):
    return [stage.as_text() for stage in stages]


@pytest.fixture(scope="module")
def before():
    """Text of the lowered program of a run, by optimizer."""
    found = {}
    for config in (AdamWConfig, LionConfig, SGDConfig):
        optimizer = config(grad_clip_value=1.0, **ON.get(config, {}))
        found[config] = text(lowered(tiny_run("llama", optimizer=optimizer, **DP8)))
    return found


CASES = {
    "adamw, linear": (AdamWConfig, LinearConfig, StdlibDataConfig),
    "lion, cosine": (LionConfig, CosineConfig, SyntheticDataConfig),
    "sgd, exponential": (SGDConfig, ExponentialConfig, StdlibDataConfig),
}


@pytest.mark.parametrize(("optimizer", "scheduler", "data"), CASES.values(), ids=CASES)
def test_other_values_need_no_other_program(optimizer, scheduler, data, before):
    changed = tiny_run(
        "llama",
        optimizer=optimizer(**SAME[optimizer]),
        scheduler=scheduler(**SAME[scheduler]),
        data=data(**SAME[data]),
        trainer=SAME[TrainerConfig],
        logger=LoggerConfig(**SAME[LoggerConfig]),
        checkpoint=CheckpointConfig(**SAME[CheckpointConfig]),
        **DP8,
    )
    assert text(lowered(changed)) == before[optimizer]


@pytest.mark.parametrize(
    "changes",
    [{"grad_clip_norm": None}, {"grad_clip_value": None}, {"momentum": 0.0}, {"nesterov": True}],
    ids=str,
)
def test_turning_a_feature_on_or_off_needs_another_program(changes, before):
    on = {"grad_clip_value": 1.0, "momentum": 0.9} | changes
    assert text(lowered(tiny_run("llama", optimizer=SGDConfig(**on), **DP8)))[0] != before[SGDConfig][0]


def test_the_compared_program_is_the_one_that_runs():
    program = build_program(tiny_run("llama", **DP8))
    planned = program.train_step.lower(program.abstract_state, program.abstract_batch, program.abstract_numbers)
    state = jax.eval_shape(program.init_step, program._seed, None)
    state = jax.tree.map(lambda leaf, like: leaf.update(sharding=like.sharding), state, program.abstract_state)
    assert program.train_step.lower(state, program.abstract_batch, program.numbers(3)).as_text() == planned.as_text()


def test_the_page_on_compilation_lists_the_fields_that_need_another_program():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "explanations" / "compilation.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line.partition(";")[0] for line in page.splitlines() if line[:3] == "| `"}
    for group, configs in {"trainer": [TrainerConfig], "optimizer": [AdamWConfig, LionConfig, SGDConfig]}.items():
        listed = set(re.findall(r"`(\w+)`", rows[group])) - {group}
        assert listed == {name for config in configs for name in OTHER[config].split()}
