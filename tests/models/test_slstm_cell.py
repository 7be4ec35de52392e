"""The sLSTM cell is the recurrence of the paper (arXiv 2405.04517, section 2.2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_hydra.models import slstm, slstm_start, slstm_step

B, T, H, V = 2, 12, 3, 4
ARGUMENTS = ("inputs", "recurrent weights")
gates = pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def inputs(seed=0, dtype=jnp.float64, scale=1.5):
    rng = np.random.default_rng(seed)
    x, recurrent = scale * rng.normal(size=(B, T, 4, H, V)), rng.normal(size=(H, V, 4, V))
    return jnp.asarray(x, dtype), jnp.asarray(recurrent, dtype)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive(x, recurrent, borders=None, forget_gate="sigmoid"):
    """The equations of section 2.2, unchanged: four matrices per head, no stabilizer."""
    x, recurrent = np.asarray(x), np.asarray(recurrent)
    forget = {"sigmoid": sigmoid, "exp": np.exp}[forget_gate]
    rows, length, _, heads, width = x.shape
    outputs = np.zeros((rows, length, heads, width))
    for b in range(rows):
        for head in range(heads):
            matrices = [recurrent[head, :, gate].T for gate in range(4)]
            c, n, h = np.zeros((3, width))
            for t in range(length):
                if borders is not None and borders[b, t]:
                    c, n, h = np.zeros((3, width))
                z, i, f, o = (x[b, t, gate, head] + matrices[gate] @ h for gate in range(4))
                c = forget(f) * c + np.exp(i) * np.tanh(z)
                n = forget(f) * n + np.exp(i)
                h = outputs[b, t, head] = sigmoid(o) * c / n
    return outputs


@gates
def test_it_computes_the_recurrence_of_the_paper(forget_gate):
    got = slstm(*inputs(), forget_gate=forget_gate)
    np.testing.assert_allclose(got, naive(*inputs(), forget_gate=forget_gate), rtol=1e-11, atol=1e-13)


@gates
def test_with_large_gates_the_result_equals_high_precision_without_a_stabilizer(forget_gate):
    x, recurrent = (np.asarray(array, np.longdouble) for array in inputs(scale=80.0))
    expected = naive(x, recurrent, forget_gate=forget_gate)
    np.testing.assert_allclose(slstm(*inputs(scale=80.0), forget_gate=forget_gate), expected, rtol=1e-9, atol=1e-12)


def test_a_document_starts_from_the_initial_state():
    borders = np.zeros((B, T), bool)
    borders[0, 5] = borders[1, 0] = borders[1, 9] = True
    got = slstm(*inputs(), jnp.asarray(borders))
    np.testing.assert_allclose(got, naive(*inputs(), borders=borders), rtol=1e-11, atol=1e-13)
    x, recurrent = inputs()
    np.testing.assert_allclose(got[:1, 5:], slstm(x[:1, 5:], recurrent), rtol=1e-12, atol=1e-14)


def test_single_steps_give_the_whole_sequence():
    x, recurrent = inputs()
    state = slstm_start((B, H, V), x.dtype)
    outputs = []
    for t in range(T):
        state, h = slstm_step(state, x[:, t], recurrent)
        outputs.append(h)
    np.testing.assert_allclose(jnp.stack(outputs, 1), slstm(x, recurrent), rtol=1e-12)


def test_a_soft_cap_only_bounds_the_input_and_forget_gates():
    x, recurrent = inputs(scale=20.0)
    capped = x.at[:, :, 1:3].set(0.5 * jnp.tanh(x[:, :, 1:3] / 0.5))
    np.testing.assert_allclose(slstm(x, 0 * recurrent, gate_soft_cap=0.5), slstm(capped, 0 * recurrent), rtol=1e-12)


@gates
@pytest.mark.parametrize("argument", range(2), ids=ARGUMENTS)
def test_the_gradient_equals_finite_differences(argument, forget_gate):
    values = list(inputs(seed=3))
    direction = jnp.asarray(np.random.default_rng(4).normal(size=values[argument].shape))
    borders = jnp.zeros((B, T), bool).at[0, 7].set(True)

    @jax.jit
    @jax.value_and_grad
    def loss(step):
        moved = [*values[:argument], values[argument] + step * direction, *values[argument + 1 :]]
        return (slstm(*moved, borders, forget_gate=forget_gate) ** 2).sum()

    numeric = (loss(1e-6)[0] - loss(-1e-6)[0]) / 2e-6
    np.testing.assert_allclose(loss(0.0)[1], numeric, rtol=1e-6)


def test_no_output_depends_on_a_later_input_and_heads_do_not_mix():
    x, recurrent = inputs()
    gradient = jax.grad(lambda x: slstm(x, recurrent)[:, 7, 1].sum())(x)
    assert jnp.all(gradient[:, 8:] == 0) and jnp.all(gradient[:, :, :, [0, 2]] == 0)
    assert jnp.all(jnp.any(gradient[:, :8, :, 1] != 0, axis=(0, 2, 3)))


@gates
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_output_and_gradient_are_finite_at_extreme_gates(dtype, forget_gate):
    x, recurrent = inputs(dtype=dtype)
    levels = jnp.asarray(np.random.default_rng(5).choice([-1e3, 0.0, 1e3], x.shape), dtype)

    @jax.jit
    def outputs_and_gradients(*args):
        outputs, pullback = jax.vjp(lambda *args: slstm(*args, forget_gate=forget_gate), *args)
        return outputs, pullback(jnp.ones_like(outputs))

    for extreme in (levels, *(x.at[:, :, gate].set(level) for gate in (1, 2) for level in (-1e3, 1e3))):
        outputs, gradients = outputs_and_gradients(extreme, recurrent)
        assert outputs.dtype == jnp.float32 and jnp.all(jnp.abs(outputs) <= 1)
        for name, gradient in zip(ARGUMENTS, gradients, strict=True):
            assert jnp.all(jnp.isfinite(gradient)), name


def test_the_size_of_the_program_does_not_depend_on_the_length():
    def text(length):
        shapes = jax.ShapeDtypeStruct((1, length, 4, 2, 8), jnp.float32), jax.ShapeDtypeStruct((2, 8, 4, 8), "float32")
        return jax.jit(jax.grad(lambda *args: slstm(*args).sum(), (0, 1))).lower(*shapes).as_text()

    assert len(text(4096)) < 1.05 * len(text(64))
