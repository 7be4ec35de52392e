"""Operation counts of the equations of a traced program."""

from __future__ import annotations

import math

from ._jaxpr import Attention, Collective, Convolution, Equation, Power, Product
from ._primitives import ATTENTION, COLLECTIVES, MOVES, UPDATES

_SEVERAL = {"one_minus_square": 2, "random_bits": 29}
"""Primitives that take several operations per element. Of a random number these are those of Threefry as XLA counts
them, with the rounds of its loop once."""

_ATTENTION_PRODUCTS: dict[str, tuple[int, int]] = dict(zip(ATTENTION, [(1, 1), (3, 2)], strict=True))
"""How many products of attention have the width of the keys and of the values (FlashAttention, arXiv 2205.14135):
scores and output; then scores once more, the gradients of queries, keys, scores and values."""


def exchange_name(name: str) -> str:
    """What XLA calls a collective; one that is not known here keeps JAX's name, so that it is not overlooked."""
    return COLLECTIVES.get(name, name)


def operations(equation: Equation) -> int:
    """Operations of an equation, as XLA counts them; those of a transcendental function are its elements."""
    name, inputs, form = equation.name, equation.inputs, equation.form
    if not equation.results:
        return 0
    taken, given = inputs[0].size if inputs else 0, equation.results[0].size
    if isinstance(form, Collective):
        return sum(result.size for result in equation.results) if exchange_name(name) == "all-reduce" else 0
    if isinstance(form, Product):
        return 2 * given * math.prod(inputs[0].shape[axis] for axis in form.contracted[0])
    if isinstance(form, Convolution):  # padding included, which XLA leaves out
        return 2 * given * math.prod(inputs[1].shape[axis] for axis in form.summed)
    if isinstance(form, Attention):
        return _attention(equation, form)
    if isinstance(form, Power):
        power = abs(form.exponent)  # by squaring
        return given * (power.bit_length() + power.bit_count() - 2 + (form.exponent < 0))
    if name.startswith("reduce_") or name in ("argmax", "argmin"):
        return taken - given
    if (times := _SEVERAL.get(name)) is not None:
        return times * given
    if name in MOVES or (name == "convert_element_type" and inputs[0].dtype == equation.results[0].dtype):
        return 0
    return inputs[-1].size if name in UPDATES else given


def _attention(equation: Equation, form: Attention) -> int:
    """Operations of the products of attention; where no token sees later ones, of half of them."""
    queries, keys, values = (atom.shape for atom in equation.inputs[:3])
    of_keys, of_values = _ATTENTION_PRODUCTS[equation.name]
    pairs = math.prod(queries[:-1]) * keys[form.time_axis]
    flops = 2 * pairs * (of_keys * keys[-1] + of_values * values[-1])
    return flops // 2 if form.is_causal else flops
