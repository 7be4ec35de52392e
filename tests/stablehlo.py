"""The lowered program of loss and gradients, and its collectives."""

import collections
import functools
import json

import jax
from tiny import tiny_run

from xlstm_hydra.parallel import list_collectives
from xlstm_hydra.step import build_program


def lowered(parallel, family="v1", **groups):
    """StableHLO of loss and gradients. The compiled program would show bfloat16 collectives as float32 on CPU."""
    return _lowered(family, json.dumps([parallel, groups], sort_keys=True), jax.config.jax_enable_x64)


@functools.cache
def _lowered(family, text, _):
    parallel, groups = json.loads(text)
    on = build_program(tiny_run(family, parallel=parallel, **groups))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return on, jax.jit(on.loss_and_gradients).lower(on.abstract_state.params, on.abstract_batch, key)


def collectives(parallel, **kwargs):
    """Number of occurrences of each collective in the program, by element type."""
    on, program = lowered(parallel, **kwargs)
    return on, count_collectives(program)


def count_collectives(program):
    """Count each kind of collective in a lowered program by its element type."""
    return collections.Counter((found.operation, found.dtype) for found in list_collectives(program))
