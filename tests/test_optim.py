"""Learning rate schedules, weight decay and gradient clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_run

from xlstm_hydra.configs import (
    AdamWConfig,
    ConfigError,
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    LionConfig,
    SGDConfig,
)
from xlstm_hydra.optim import build_optimizer, decay_mask, hyperparameters, learning_rate

PARAMS = {
    "token_embedding": {"embedding": jnp.ones((4, 2))},
    "blocks": {"dense": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2)}},
}


def rates(scheduler, steps=range(0, 101), lr=1.0):
    run = tiny_run(optimizer=SGDConfig(lr=lr), scheduler=scheduler, trainer={"max_steps": 100})
    return np.asarray([learning_rate(run)(step) for step in steps], float)


SCHEDULES = {
    "constant": (ConstantConfig, lambda t: 1.0),
    "cosine": (CosineConfig, lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t)) / 2),
    "linear": (LinearConfig, lambda t: 1 - 0.9 * t),
    "exponential": (ExponentialConfig, lambda t: 0.1**t),
}
schedules = pytest.mark.parametrize(("config", "formula"), SCHEDULES.values(), ids=SCHEDULES)


@schedules
def test_a_schedule_follows_its_formula(config, formula):
    np.testing.assert_allclose(rates(config()), [formula(step / 100) for step in range(101)], atol=1e-5)


@schedules
def test_warmup_and_cooldown_are_linear_and_join_the_main_part(config, formula):
    got = rates(config(warmup_steps=20, cooldown_steps=30, cooldown_lr_factor=0.01))
    np.testing.assert_allclose(got[:21], np.linspace(0, 1, 21), atol=1e-5)
    np.testing.assert_allclose(got[20:71], [formula(step / 50) for step in range(51)], atol=1e-5)
    np.testing.assert_allclose(got[70:], np.linspace(formula(1), 0.01, 31), atol=1e-5)


@schedules
def test_a_schedule_is_constant_after_its_end(config, formula):
    got = rates(config(decay_steps=50, cooldown_steps=10, cooldown_lr_factor=0.3), steps=[40, 50, 60, 100])
    np.testing.assert_allclose(got, [formula(1), 0.3, 0.3, 0.3], atol=1e-5)


def stepped(optimizer, gradients=None, **model):
    run = tiny_run(optimizer=optimizer, model=model)
    chain = build_optimizer(run, PARAMS)
    zeros = {
        "token_embedding": {"embedding": jnp.zeros((4, 2))},
        "blocks": {"dense": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}},
    }
    updates, _ = chain.update(gradients or zeros, chain.init(PARAMS), PARAMS)
    return updates


@pytest.mark.parametrize("config", [AdamWConfig, LionConfig, SGDConfig], ids=["adamw", "lion", "sgd"])
def test_weight_decay_shrinks_kernels_by_the_learning_rate_and_leaves_the_rest(config):
    updates = stepped(config(lr=0.5, weight_decay=0.1))
    np.testing.assert_allclose(updates["blocks"]["dense"]["kernel"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    assert not updates["blocks"]["dense"]["bias"].any() and not updates["token_embedding"]["embedding"].any()


def mask(model=None, **optimizer):
    chosen = decay_mask(tiny_run(optimizer=AdamWConfig(**optimizer), model=model), PARAMS)
    return (
        chosen["token_embedding"]["embedding"],
        chosen["blocks"]["dense"]["kernel"],
        chosen["blocks"]["dense"]["bias"],
    )


MASKS = {
    "default": ({}, {}, (False, True, False)),
    "embedding too": ({"weight_decay_on_embedding": True}, {}, (True, True, False)),
    "all but the embedding": ({}, {"weight_decay_include": ["."]}, (False, True, True)),
    "excluded": ({}, {"weight_decay_include": ["."], "weight_decay_exclude": ["bias$"]}, (False, True, False)),
}


@pytest.mark.parametrize(("model", "optimizer", "expected"), MASKS.values(), ids=MASKS)
def test_the_patterns_select_the_parameters_with_weight_decay(model, optimizer, expected):
    assert mask(model, **optimizer) == expected


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer.weight_decay_exclude='nrom': matches no parameter"):
        mask(weight_decay_exclude=["nrom"])


def test_the_gradient_is_clipped_by_norm_then_by_value():
    gradients = {
        "token_embedding": {"embedding": jnp.zeros((4, 2))},
        "blocks": {"dense": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.zeros(2)}},
    }
    plain = SGDConfig(lr=1.0, grad_clip_norm=None)
    by_norm = SGDConfig(lr=1.0, grad_clip_norm=1.0)
    by_both = SGDConfig(lr=1.0, grad_clip_norm=1.0, grad_clip_value=0.25)
    got = [stepped(config, gradients)["blocks"]["dense"]["kernel"][0, 0] for config in (plain, by_norm, by_both)]
    np.testing.assert_allclose(got, [-3.0, -0.5, -0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (AdamWConfig, {"beta1": 0.5, "beta2": 0.6, "eps": 0.1}),
        (LionConfig, {"beta1": 0.5, "beta2": 0.6}),
        (SGDConfig, {"momentum": 0.5}),
    ],
    ids=["adamw", "lion", "sgd"],
)
def test_a_step_uses_the_numbers_in_its_arguments(config, changes):
    changes = changes | {"lr": 0.3, "weight_decay": 0.2, "grad_clip_norm": 0.5, "grad_clip_value": 0.1}
    ones = jax.tree.map(jnp.ones_like, PARAMS)

    @jax.jit
    def second(numbers):
        """Second step, compiled for the run without the changes."""
        on = {"grad_clip_value": 1.0} | ({"momentum": 0.9} if config is SGDConfig else {})
        chain = build_optimizer(tiny_run(optimizer=config(**on)), PARAMS, numbers)
        return chain.update(ones, chain.update(ones, chain.init(PARAMS), PARAMS)[1], PARAMS)[0]

    chain = build_optimizer(tiny_run(optimizer=config(**changes)), PARAMS)
    expected = chain.update(ones, chain.update(ones, chain.init(PARAMS), PARAMS)[1], PARAMS)[0]
    given = second(hyperparameters(config(**changes)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), given, expected)


def test_momentum_and_nesterov_change_the_second_step():
    def second(config):
        chain = build_optimizer(tiny_run(optimizer=config), PARAMS)
        state = chain.init(PARAMS)
        ones = {
            "token_embedding": {"embedding": jnp.ones((4, 2))},
            "blocks": {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
        }
        for _ in range(2):
            updates, state = chain.update(ones, state, PARAMS)
        return -float(updates["blocks"]["dense"]["bias"][0])

    plain, heavy, looking = (
        second(SGDConfig(lr=1.0, grad_clip_norm=None, **extra))
        for extra in ({}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True})
    )
    np.testing.assert_allclose([plain, heavy, looking], [1.0, 1.5, 1.75])
