"""Traced programs as plain values. No other module reads JAX's jaxprs.

What JAX calls a primitive, and what its parameters are, differs between versions. The versions from 0.10 on are known:

| JAX | |
|---|---|
| 0.10 | a scan has `num_consts` and `num_carry`; a program with constants is a `ClosedJaxpr` |
| 0.11.0 | a scan has `ft_in` and `ft_out` instead; `Jaxpr` and `ClosedJaxpr` are one class |
| 0.11.1 | the constants of a `ClosedJaxpr` of a call are inputs of the call; `closed_call` is `eval_jaxpr` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

from xlstm_hydra._jax_internals import cudnn_assumed, cudnn_time_axis
from xlstm_hydra.step import ShardedLoss

from ._equations import (
    ATTENTION,
    MOVES,
    REDUCTIONS,
    UPDATES,
    Atom,
    Attention,
    Call,
    Collective,
    Convolution,
    Equation,
    Form,
    Power,
    Product,
    Program,
    Programs,
    Scan,
    Transposition,
    UnknownForm,
    While,
)


def trace_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """The program of a function for arguments of which only shapes and types matter."""
    return read_program(jax.make_jaxpr(function)(*arguments))


def read_program(jaxpr: Any) -> Program:
    """The program in a jaxpr, open or closed.

    Raises:
        UnknownForm: this JAX has other parameters for a primitive.
    """
    return _Reader().program(jaxpr)


class _Reader:
    """Reads every jaxpr once, however many equations share it."""

    def __init__(self) -> None:
        self._read: dict[int, Program] = {}

    def program(self, jaxpr: Any) -> Program:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        if id(jaxpr) not in self._read:  # the outermost jaxpr keeps all of them alive meanwhile
            self._read[id(jaxpr)] = self._program(jaxpr)
        return self._read[id(jaxpr)]

    def _program(self, jaxpr: Any) -> Program:
        atoms: dict[Any, Atom] = {}

        def atom(var: Any) -> Atom:
            if isinstance(var, core.Literal):
                return _atom(var.aval, str(var))
            if var not in atoms:
                atoms[var] = _atom(var.aval)
            return atoms[var]

        return Program(
            inputs=tuple(map(atom, jaxpr.invars)),
            constants=tuple(map(atom, jaxpr.constvars)),
            equations=tuple(
                self._equation(eqn, tuple(map(atom, eqn.invars)), tuple(map(atom, eqn.outvars))) for eqn in jaxpr.eqns
            ),
            results=tuple(map(atom, jaxpr.outvars)),
        )

    def _equation(self, eqn: Any, inputs: tuple[Atom, ...], results: tuple[Atom, ...]) -> Equation:
        name, params = eqn.primitive.name, eqn.params
        try:
            form = self._form(name, params, inputs)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            names, why = ", ".join(sorted(params)) or "none", f"{type(error).__name__}: {error}"
            raise UnknownForm(f"the parameters of the primitive {name!r} cannot be read ({names}): {why}") from error
        text = "" if isinstance(form, Call | Scan | While) else str(params)
        return Equation(name, inputs, results, form, str(eqn.source_info.name_stack), text)

    def _form(self, name: str, params: Mapping[str, Any], inputs: tuple[Atom, ...]) -> Form:
        if name == "scan":
            constants, carried = _scan_sizes(params)
            return Scan(self.program(params["jaxpr"]), params["length"], constants, carried)
        if name == "while":
            condition, body = (self.program(params[key]) for key in ("cond_jaxpr", "body_jaxpr"))
            return While(condition, body, params["body_nconsts"])
        if name in _READ:
            return _READ[name](params)
        if axes := _mesh_axes(name, params):
            return Collective(axes, params.get("all_gather_dimension", params.get("scatter_dimension", 0)))
        jaxprs = [] if name in UPDATES | REDUCTIONS else list(core.jaxprs_in_params(params))
        if len(jaxprs) == 1 and len(jaxprs[0].invars) == len(inputs) and name != "cond":
            return Call(self.program(jaxprs[0]), bool(params.get("prevent_cse")))
        return Programs(tuple(map(self.program, jaxprs))) if jaxprs else None


def _atom(aval: Any, literal: str | None = None) -> Atom:
    dtype = getattr(aval, "dtype", None)
    name = "" if dtype is None else getattr(dtype, "name", str(dtype))
    return Atom(tuple(getattr(aval, "shape", ())), name, getattr(dtype, "itemsize", 0), literal)


def _scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of a scan's constants and carried values."""
    if "num_consts" in params:  # JAX 0.10
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(carried)


def _mesh_axes(name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the mesh axes of a collective; axes that `jax.vmap` maps over have numbers."""
    if name in MOVES:
        return ()
    axes = params.get("axes", params.get("axis_name"))
    return tuple(axis for axis in (axes if isinstance(axes, tuple) else (axes,)) if isinstance(axis, str))


def _product(params: Mapping[str, Any]) -> Product:
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    return Product((tuple(left), tuple(right)), (tuple(left_batch), tuple(right_batch)))


def _attention(params: Mapping[str, Any]) -> Attention:
    return Attention(cudnn_time_axis(params["layout"]), "CAUSAL" in params["mask_type"].name)


_READ: dict[str, Callable[[Mapping[str, Any]], Form]] = {
    "dot_general": _product,
    "conv_general_dilated": lambda params: Convolution(tuple(params["dimension_numbers"].rhs_spec[1:])),
    "transpose": lambda params: Transposition(tuple(params["permutation"])),
    "integer_pow": lambda params: Power(params["y"]),
    **dict.fromkeys(ATTENTION, _attention),
}
"""Reads the form of a primitive from its parameters, by its name."""


def trace_loss(loss: ShardedLoss) -> Program:
    """Loss and gradients: one `shard_map` whose body is what each device does."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with cudnn_assumed():
        return trace_program(loss.loss_and_gradients, loss.abstract_params, loss.abstract_batch, key)
