"""Llama only: positions, masks and attention backends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import outputs, params_of, some_tokens
from tiny import FAMILIES, tiny_run

from xlstm_hydra.configs import ConfigError, GenerateTaskConfig
from xlstm_hydra.devices import start_devices
from xlstm_hydra.models import BlockInputs, positions_BT, rotate


def llama(**changes):
    return FAMILIES["llama"](**changes)


def test_positions_restart_with_every_document():
    borders = jnp.asarray([[1, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]], bool)
    expected = [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]
    np.testing.assert_array_equal(positions_BT(BlockInputs(jnp.arange(2), borders), 6), expected)
    np.testing.assert_array_equal(positions_BT(BlockInputs(jnp.arange(2)), 3), [[0, 1, 2]])


def test_the_score_of_two_tokens_depends_only_on_their_distance():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(query, key):
        turned = (rotate(x, jnp.asarray([[at]]), 100.0) for x, at in ((q, query), (k, key)))
        return (next(turned) * next(turned)).sum()

    np.testing.assert_allclose(score(9, 4), score(105, 100), rtol=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_rotation_preserves_norms_and_rotates_the_first_pair_by_the_position():
    x = jax.random.normal(jax.random.key(0), (1, 1, 1, 8))
    turned = rotate(x, jnp.asarray([[3]]), 100.0)
    np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(x), rtol=1e-6)
    first = (x[..., 0] + 1j * x[..., 1]) * np.exp(3j)
    np.testing.assert_allclose(turned[..., 0] + 1j * turned[..., 1], first, rtol=1e-5)


def test_late_positions_are_as_precise_in_bfloat16_as_early_ones():
    x = jax.random.normal(jax.random.key(0), (1, 1, 1, 8))
    turned = rotate(x.astype(jnp.bfloat16), jnp.asarray([[8191]]), 5e5)
    np.testing.assert_allclose(turned, rotate(x, jnp.asarray([[8191]]), 5e5), atol=0.03)


def test_the_logits_of_a_document_do_not_depend_on_its_place_in_the_row():
    tokens, borders = some_tokens(), jnp.zeros((2, 16), bool).at[:, 6].set(True)
    model = llama(mask_across_document_boundaries=True)
    alone = outputs(model, jnp.roll(tokens, -6, axis=1))
    np.testing.assert_allclose(outputs(model, tokens, borders)[:, 6:], alone[:, :10], atol=1e-5)


def test_without_the_mask_a_document_attends_to_earlier_ones():
    tokens, borders = some_tokens(), jnp.zeros((2, 16), bool).at[:, 8].set(True)
    other = tokens.at[:, 0].set((tokens[:, 0] + 1) % 32)
    assert jnp.all(jnp.any(outputs(llama(), tokens, borders) != outputs(llama(), other, borders), axis=-1))


def test_without_the_causal_mask_a_token_attends_to_later_ones():
    tokens = some_tokens()
    other = tokens.at[:, 15].set((tokens[:, 15] + 1) % 32)
    model = llama(causal=False)
    assert jnp.all(jnp.any(outputs(model, tokens) != outputs(model, other), axis=-1))


def test_the_head_uses_the_dtype_of_the_activations_by_default():
    tokens, params = some_tokens(), params_of(llama())
    follows, told = (outputs(llama(dtype="bfloat16", **head), tokens, params=params)
                     for head in ({}, {"lm_head_dtype": "float32"}))  # fmt: skip
    np.testing.assert_array_equal(follows, follows.astype(jnp.bfloat16).astype(jnp.float32))
    assert jnp.any(told != told.astype(jnp.bfloat16).astype(jnp.float32))


def test_a_backend_that_the_devices_lack_is_refused_before_training():
    run = tiny_run("llama", model={"attention_backend": "cudnn", "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="model.attention_backend='cudnn': cuDNN needs NVIDIA GPUs, not c"):
        start_devices(run)
    task = GenerateTaskConfig(checkpoint="run", prompt_tokens=[1], max_new_tokens=4)
    start_devices(dataclasses.replace(run, task=task))  # the task always uses xla
