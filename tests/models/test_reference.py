"""Weights of xlstm-jax give the logits of xlstm-jax in our models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import CHECKPOINTS, load_model, load_params
from tiny import LAYOUTS
from xlstm_jax_tree import convert

from xlstm_hydra import checkpoint
from xlstm_hydra.configs import ParallelConfig, RunConfig, SyntheticDataConfig, TrainerConfig
from xlstm_hydra.models import apply_model, build_model, init_model
from xlstm_hydra.parallel import Axes
from xlstm_hydra.runs import find_checkpoint
from xlstm_hydra.step import build_program, cross_entropy

CASES = ["a_mlstm_v0", "b_mlstm_v1", "c_llama"]
ALL = [*CASES, "d_8dev_mlstm_v0_fsdp2_tp2"]
FORMS = [(case, backend) for case in CASES[:2] for backend in ("chunkwise", "quadratic", "recurrent")]
pytestmark = pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the reference checkpoints are not on this machine")


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def data(case):
    return {name: jnp.asarray(value) for name, value in np.load(CHECKPOINTS / case / "reference.npz").items()}


@functools.cache
def forward(case, changes=()):
    """The compiled forward pass of a reference checkpoint's model."""
    module = build_model(load_model(case, **dict(changes)))
    return jax.jit(functools.partial(apply_model, module))


def logits(case, params, reference, **changes):
    return forward(case, tuple(changes.items()))(params, reference["inputs"], reference["document_borders"])


def assert_equal_logits(case, **changes):
    model, reference = load_model(case, **changes), data(case)
    ours = logits(case, load_params(case, model), reference, **changes)
    # Llama's rotary positions: in the reference, all padding tokens have position 0; here, positions keep counting.
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
    losses = cross_entropy(logits(case, load_params(case, model), reference), reference["targets"], 64, Axes())
    mask = reference["targets_segmentation"] != 0
    np.testing.assert_allclose(losses[mask], reference["token_loss"][mask], atol=1e-5)


def test_the_gradients_are_equal(case):
    model, reference = load_model(case), data(case)
    mask = reference["targets_segmentation"] != 0

    def loss(params):
        losses = cross_entropy(logits(case, params, reference), reference["targets"], 64, Axes())
        return jnp.where(mask, losses, 0).sum() / mask.sum()

    gradients = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(load_params(case, model)), sep=".")
    expected = traverse_util.flatten_dict(load_params(case, model, "grads.npz"), sep=".")
    for path, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[path], atol=2e-6, err_msg=path)


def test_the_initial_values_have_the_same_distribution(case):
    model = load_model(case)
    ours = traverse_util.flatten_dict(jax.jit(lambda: init_model(build_model(model), jax.random.key(0)))(), sep=".")
    theirs = traverse_util.flatten_dict(load_params(case, model, "init_params.npz"), sep=".")
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.shape == theirs[path].shape, path
        if value.size >= 64:  # two random biases are too few to compare moments
            np.testing.assert_allclose(value.std(), theirs[path].std(), rtol=0.35, atol=1e-7, err_msg=path)
            np.testing.assert_allclose(value.mean(), theirs[path].mean(), atol=0.02 + 3 * value.std(), err_msg=path)


def on_disk(case, shardings=None, **changes):
    """Parameters read from the checkpoint on disk."""
    model = load_model(case, **changes)
    return model, checkpoint.load_params(find_checkpoint(str(CHECKPOINTS / case / "run")), model, shardings)


@pytest.mark.parametrize("case", ALL)
def test_a_checkpoint_on_disk_gives_its_own_logits_and_loss(case):
    model, params = on_disk(case)
    reference = data(case)
    got = logits(case, params, reference)
    mask = reference["targets_segmentation"] != 0
    here = slice(None) if case != "c_llama" else reference["inputs_segmentation"] != 0
    np.testing.assert_allclose(got[here], reference["logits"][here], atol=1e-5)
    losses = cross_entropy(got, reference["targets"], 64, Axes())
    np.testing.assert_allclose(losses[mask].mean(), reference["token_loss"][mask].mean(), atol=1e-6)


def test_an_independent_reader_gets_the_same_parameters(case):
    model, params = on_disk(case)
    jax.tree.map(np.testing.assert_array_equal, params, load_params(case, model))


def test_a_checkpoint_of_xlstm_jax_can_be_loaded_onto_our_layouts():
    model, whole = on_disk(ALL[-1])
    model.parallel = ParallelConfig(**LAYOUTS["tp2_fsdp4"])
    run = RunConfig(model=model, data=SyntheticDataConfig(), trainer=TrainerConfig(batch_size=8))
    shardings = build_program(run).state_shardings.params
    _, params = on_disk(ALL[-1], shardings)
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings


def test_the_gradients_of_tensor_parallel_devices_are_equal_up_to_a_factor():
    """In xlstm-jax, each device averages over its own targets, and arrays that are stacked over two devices have twice
    the gradient."""
    case = ALL[-1]
    model, params = on_disk(case, scan_blocks=True)
    reference = data(case)

    def by_device(x):  # rows over dp and fsdp, tokens over tp
        return x.reshape(4, 2, 2, 16).swapaxes(1, 2).reshape(8, -1)

    mask = by_device(reference["targets_segmentation"] != 0)

    def loss(params):
        losses = by_device(
            cross_entropy(logits(case, params, reference, scan_blocks=True), reference["targets"], 64, Axes())
        )
        return (jnp.where(mask, losses, 0).sum(1) / mask.sum(1)).mean()

    gradients = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep=".")
    expected = convert(dict(np.load(CHECKPOINTS / case / "grads.npz")), model)
    assert gradients.keys() == expected.keys()
    for path, gradient in gradients.items():
        factor = 1 if path.startswith("lm_head") else 2
        np.testing.assert_allclose(factor * gradient, expected[path], atol=2e-6, err_msg=path)
