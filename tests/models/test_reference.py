"""The weights of xlstm-jax give their own logits in our models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import CHECKPOINTS, load_model, load_params

from xlstm_hydra.models import apply_model, build_model, init_model
from xlstm_hydra.parallel import Axes
from xlstm_hydra.train import cross_entropy

CASES = ["a_mlstm_v0", "b_mlstm_v1", "c_llama"]
FORMS = [(case, backend) for case in CASES[:2] for backend in ("chunkwise", "quadratic", "recurrent")]
pytestmark = pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the reference checkpoints are not on this machine")


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def data(case):
    return {name: jnp.asarray(value) for name, value in np.load(CHECKPOINTS / case / "reference.npz").items()}


def logits(model, params, reference):
    return apply_model(build_model(model), params, reference["inputs"], reference["document_borders"])


def assert_equal_logits(case, **changes):
    model, reference = load_model(case, **changes), data(case)
    ours = logits(model, load_params(case, model), reference)
    # Llama's rotary positions: in the reference every token of the padding is at 0, here they go on.
    here = slice(None) if case != "c_llama" else reference["inputs_segmentation"] != 0
    np.testing.assert_allclose(ours[here], reference["logits"][here], atol=1e-5)


@pytest.mark.parametrize(("case", "backend"), FORMS)
def test_the_logits_are_equal_in_every_form_of_the_cell(case, backend):
    assert_equal_logits(case, backend=backend)


@pytest.mark.parametrize("attention_backend", ["xla", None])
def test_the_logits_of_llama_are_equal(attention_backend):
    assert_equal_logits("c_llama", attention_backend=attention_backend)


def test_the_loss_of_every_token_is_equal(case):
    model, reference = load_model(case), data(case)
    losses = cross_entropy(logits(model, load_params(case, model), reference), reference["targets"], 64, Axes())
    mask = reference["targets_segmentation"] != 0
    np.testing.assert_allclose(losses[mask], reference["token_loss"][mask], atol=1e-5)


def test_the_gradients_are_equal(case):
    model, reference = load_model(case), data(case)
    mask = reference["targets_segmentation"] != 0

    def loss(params):
        losses = cross_entropy(logits(model, params, reference), reference["targets"], 64, Axes())
        return jnp.where(mask, losses, 0).sum() / mask.sum()

    gradients = traverse_util.flatten_dict(jax.grad(loss)(load_params(case, model)), sep=".")
    expected = traverse_util.flatten_dict(load_params(case, model, "grads.npz"), sep=".")
    for path, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[path], atol=2e-6, err_msg=path)


def test_the_initial_values_have_the_same_distribution(case):
    model = load_model(case)
    ours = traverse_util.flatten_dict(init_model(build_model(model), jax.random.key(0)), sep=".")
    theirs = traverse_util.flatten_dict(load_params(case, model, "init_params.npz"), sep=".")
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.shape == theirs[path].shape, path
        if value.size >= 64:  # of two random biases, the moments say nothing
            np.testing.assert_allclose(value.std(), theirs[path].std(), rtol=0.35, atol=1e-7, err_msg=path)
            np.testing.assert_allclose(value.mean(), theirs[path].mean(), atol=0.02 + 3 * value.std(), err_msg=path)
