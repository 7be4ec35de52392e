"""Sampling of a token from logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_hydra.inference import draw

PROBABILITIES = np.asarray([0.04, 0.5, 0.06, 0.3, 0.1])
ROWS = 4000


def shares(**options):
    """Observed frequency of each token."""
    logits = jnp.tile(jnp.log(jnp.asarray(PROBABILITIES)) + 3, (ROWS, 1))
    options = {"temperature": 1.0} | options
    keys = jax.random.split(jax.random.key(0), ROWS)
    tokens = jax.jit(lambda *inputs: draw(*inputs, **options))(logits, keys)
    return np.bincount(tokens, minlength=5) / ROWS


def among(*tokens, power=1.0):
    kept = np.where(np.isin(np.arange(5), tokens), PROBABILITIES**power, 0)
    return kept / kept.sum()


OPTIONS = {
    "all": ({}, among(0, 1, 2, 3, 4)),
    "greedy": ({"temperature": 0.0}, among(1)),
    "temperature": ({"temperature": 0.5}, among(0, 1, 2, 3, 4, power=2)),
    "top k": ({"top_k": 3}, among(1, 3, 4)),
    "top p": ({"top_p": 0.79}, among(1, 3)),
    "top p, just beyond": ({"top_p": 0.81}, among(1, 3, 4)),
    "top p of top k": ({"top_k": 2, "top_p": 0.6}, among(1)),
    "a tiny top p": ({"top_p": 1e-6}, among(1)),
}


@pytest.mark.parametrize(("options", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_token_frequencies_match_the_options(options, expected):
    got = shares(**options)
    np.testing.assert_allclose(got, expected, atol=0.03)
    assert not got[expected == 0].any()
