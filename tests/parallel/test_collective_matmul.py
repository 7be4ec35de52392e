"""Collective matmuls give the same results as gathering, multiplying and scattering."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from xlstm_hydra.parallel import Axes, column_matmul, gather_stream, row_matmul

ROWS, STREAM, HIDDEN = 3, 24, 48
SIZES = (2, 3, 4, 8)


def layer(size, overlap):
    """Return a function of global arrays that runs two layers, stream -> hidden -> stream, on `size` devices."""
    axes = Axes(tensor="tp", tensor_size=size, overlap=overlap)

    def local(x, up, down):
        return row_matmul(jnp.tanh(column_matmul(gather_stream(x, axes), up, axes)), down, axes)

    specs = PartitionSpec(None, "tp"), PartitionSpec(None, "tp"), PartitionSpec("tp", None)
    mesh = Mesh(np.asarray(jax.devices()[:size]), ("tp",))
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[0]))


def arrays(dtype=float):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((ROWS, STREAM), (STREAM, HIDDEN), (HIDDEN, STREAM))
    )


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_equal_those_of_the_full_product(size):
    with jax.enable_x64(True):
        inputs = arrays()
        whole = lambda x, up, down: jnp.tanh(x @ up) @ down  # noqa: E731
        np.testing.assert_allclose(layer(size, True)(*inputs), whole(*inputs), rtol=1e-12)
        ours, theirs = (
            jax.grad(lambda *args, f=f: jnp.sum(jnp.sin(f(*args))), (0, 1, 2))(*inputs)
            for f in (layer(size, True), whole)
        )
        for gradient, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_permutes_replace_gather_and_scatter(size):
    at_once, by_pieces = (layer(size, overlap).lower(*arrays()).as_text() for overlap in (False, True))
    assert at_once.count("stablehlo.all_gather") == at_once.count("stablehlo.reduce_scatter") == 1
    assert "all_gather" not in by_pieces and "reduce_scatter" not in by_pieces
    assert by_pieces.count("stablehlo.collective_permute") == 2 * (size - 1)


@pytest.mark.parametrize("size", SIZES)
def test_shards_are_sent_in_both_directions_of_the_ring(size):
    text = layer(size, True).lower(*arrays()).as_text()
    pairs = re.findall(r"source_target_pairs = dense<\[\[(\d+), (\d+)\]", text)
    ways = [(int(target) - int(source)) % size for source, target in pairs]
    assert ways.count(1) + ways.count(size - 1) == len(ways) or size == 2
    assert size == 2 or abs(ways.count(1) - ways.count(size - 1)) <= 2


@pytest.mark.parametrize("size", [2, 4])
def test_in_bfloat16_the_error_is_not_larger_than_without_collective_matmul(size):
    inputs, exact = arrays(jnp.bfloat16), [np.asarray(x, np.float64) for x in arrays(jnp.bfloat16)]
    truth = np.tanh(exact[0] @ exact[1]) @ exact[2]
    errors = [np.abs(np.asarray(layer(size, overlap)(*inputs), np.float64) - truth).max() for overlap in (True, False)]
    assert errors[0] < 2 * errors[1] + 0.05
