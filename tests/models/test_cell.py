"""The three forms of the mLSTM cell compute the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_hydra.models import mlstm_chunkwise, mlstm_quadratic, mlstm_recurrent

B, T, H, K, V = 2, 24, 3, 4, 6
NAMES = ("q", "k", "v", "i", "f")
FORMS = {
    "chunks of 1": lambda *x, **kw: mlstm_chunkwise(*x, chunk_size=1, **kw),
    "chunks of 8": lambda *x, **kw: mlstm_chunkwise(*x, chunk_size=8, **kw),
    "one chunk": lambda *x, **kw: mlstm_chunkwise(*x, chunk_size=T, **kw),
    "recurrent": mlstm_recurrent,
}
forms = pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FORMS.items()])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def inputs(seed=0, dtype=jnp.float64, gate_scale=3.0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, T, H, width)) for width in (K, K, V))
    i, f = (gate_scale * rng.normal(size=(B, T, H)) for _ in range(2))
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v, i, f))


def naive(q, k, v, i, f):
    """The recurrence of the paper without a stabilizer, in Python floats."""
    q, k, v, i, f = (np.asarray(x, np.float64) for x in (q, k, v, i, f))
    h = np.zeros_like(v)
    for b in range(B):
        for head in range(H):
            C, n = np.zeros((V, K)), np.zeros(K)
            for t in range(T):
                forget, write = 1 / (1 + np.exp(-f[b, t, head])), np.exp(i[b, t, head])
                C = forget * C + write * np.outer(v[b, t, head], k[b, t, head])
                n = forget * n + write * k[b, t, head]
                query = q[b, t, head] / np.sqrt(K)
                h[b, t, head] = C @ query / max(abs(n @ query), 1)
    return h


@pytest.fixture(scope="module")
def expected():
    with jax.enable_x64(True):
        return naive(*inputs())


@pytest.mark.parametrize("form", [mlstm_quadratic, *FORMS.values()], ids=["quadratic", *FORMS])
def test_it_computes_the_recurrence_of_the_paper(form, expected):
    got = jax.jit(functools.partial(form, eps=0.0))(*inputs())
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


@forms
def test_all_forms_give_the_same_output(form):
    np.testing.assert_allclose(jax.jit(form)(*inputs()), jax.jit(mlstm_quadratic)(*inputs()), rtol=1e-11, atol=1e-13)


@functools.cache
def gradients(form):
    return jax.jit(jax.grad(lambda *x: (form(*x) * jnp.cos(x[2])).sum(), range(5)))(*inputs())


@forms
@pytest.mark.parametrize("argument", range(5), ids=NAMES)
def test_all_forms_give_the_same_gradient(form, argument):
    np.testing.assert_allclose(gradients(form)[argument], gradients(mlstm_quadratic)[argument], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("argument", range(5), ids=NAMES)
def test_the_gradient_equals_finite_differences(argument):
    values = list(inputs(seed=3, gate_scale=1.0))
    direction = jnp.asarray(np.random.default_rng(4).normal(size=values[argument].shape))

    @jax.jit
    def loss(step):
        moved = [*values[:argument], values[argument] + step * direction, *values[argument + 1 :]]
        return (mlstm_chunkwise(*moved, chunk_size=8, eps=0.0) ** 2).sum()

    numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(loss)(0.0), numeric, rtol=1e-6)


@forms
def test_no_output_depends_on_a_later_input(form):
    def at_step_9(*x):
        return form(*x)[:, 9].sum()

    for name, gradient in zip(NAMES, jax.jit(jax.grad(at_step_9, range(5)))(*inputs()), strict=True):
        assert jnp.all(gradient[:, 10:] == 0), name
        assert jnp.any(gradient[:, :10] != 0), name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", [mlstm_quadratic, *FORMS.values()], ids=["quadratic", *FORMS])
def test_output_and_gradient_are_finite_at_extreme_gates(form, dtype):
    levels = jnp.repeat(jnp.asarray([(i, f) for i in (-1e3, 0, 1e3) for f in (-1e3, 0, 1e3)]), B, axis=0)
    q, k, v, noise, _ = (jnp.tile(x, (9, *[1] * (x.ndim - 1))) for x in inputs(dtype=dtype))
    i, f = ((levels[:, which, None, None] + noise).astype(dtype) for which in range(2))

    @jax.jit
    def both(*x):
        outputs, pullback = jax.vjp(form, *x)
        return outputs, *pullback(jnp.ones_like(outputs))

    for name, values in zip(("h", *NAMES), both(q, k, v, i, f), strict=True):
        assert jnp.all(jnp.isfinite(values)), name


def test_gates_that_jump_between_extremes_stay_finite():
    q, k, v, _, _ = inputs(dtype=jnp.float32)
    signs = jnp.asarray(np.random.default_rng(5).choice([-1e3, 1e3], (2, B, T, H)), jnp.float32)
    gradients = jax.jit(jax.grad(lambda *x: mlstm_chunkwise(*x, chunk_size=8).sum(), range(5)))(q, k, v, *signs)
    assert all(jnp.all(jnp.isfinite(gradient)) for gradient in gradients)


def test_a_chunk_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"chunk size \(7\) must divide the number of tokens \(24\)"):
        mlstm_chunkwise(*inputs(), chunk_size=7)


def grad_of(length):
    shapes = [jax.ShapeDtypeStruct((1, length, 2, *rest), jnp.float32) for rest in ((8,), (8,), (8,), (), ())]
    return jax.jit(jax.grad(lambda *x: mlstm_chunkwise(*x, chunk_size=16).sum(), range(5))).lower(*shapes)


def test_the_size_of_the_program_does_not_depend_on_the_length():
    short, long = (len(grad_of(length).as_text()) for length in (64, 4096))
    assert long < 1.05 * short


def test_the_memory_of_the_backward_pass_is_linear_in_the_length():
    short, long = (grad_of(length).compile().memory_analysis().temp_size_in_bytes for length in (1024, 4096))
    assert long < 4.5 * short
