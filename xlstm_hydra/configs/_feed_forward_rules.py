"""Allowed values, rounded widths and rules of feed-forward layers, shared by several model families."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from xlstm_hydra.problems import Problem

from ._rules import at_least, one_of, unused
from .parallel import DTYPES

ACTIVATIONS = ("gelu", "relu", "relu^2", "sigmoid", "swish", "selu")
"""Activation functions of the feed-forward layer. gelu is the tanh approximation."""

FF_TYPES = ("ffn_gated", "ffn")
"""Types of feed-forward layers."""


def rounded_dim(config: Any, factor: float, prefix: str = "") -> int:
    """Return `factor * embedding_dim`, rounded as the config requires, or 0 if the result is not a valid width.

    Args:
        config: the config of a model family.
        factor: the width as a multiple of the embedding width.
        prefix: prefix in the names of the two fields that define the rounding."""
    multiple = max(getattr(config, f"{prefix}round_proj_up_to_multiple_of"), 1)
    units = factor * config.embedding_dim / multiple
    if not 0 < units < math.inf:
        return 0
    return (math.ceil(units) if getattr(config, f"{prefix}round_proj_up_dim_up") else math.floor(units)) * multiple


def rounding_rules(config: Any, key: str, name: str, prefix: str = "") -> Iterator[Problem]:
    """Check that a width computed from the factor in the field `key` is not rounded to 0. `name` is the name of the
    width in messages."""
    multiple_key = f"{prefix}round_proj_up_to_multiple_of"
    multiple, factor = getattr(config, multiple_key), getattr(config, key)
    exists = multiple > 0 and 0 < factor < math.inf and config.embedding_dim > 0
    if exists and rounded_dim(config, factor, prefix) < 1:
        given = {key: factor, multiple_key: multiple, "embedding_dim": config.embedding_dim}
        yield Problem(given, f"the {name} must be at least 1", f"Set {{{prefix}round_proj_up_dim_up}}=true.")


def layer_rules(config: Any, *, optional: bool = False) -> Iterator[Problem]:
    """Check `ff_type` (may be null if `optional`), `act_fn` and `ff_dtype`."""
    yield from one_of(config, "ff_type", FF_TYPES, optional=optional)
    yield from one_of(config, "act_fn", ACTIVATIONS)
    yield from one_of(config, "ff_dtype", DTYPES, optional=True)


def optional_layer_rules(config: Any, prefix: str) -> Iterator[Problem]:
    """Check an optional feed-forward layer. `prefix` is the prefix in the names of its width fields. If there is no
    such layer, all its fields must be left at their defaults."""
    width = [f"{prefix}{name}" for name in ("proj_factor", "round_proj_up_dim_up", "round_proj_up_to_multiple_of")]
    yield from layer_rules(config, optional=True)
    if config.ff_type is None:
        for key in (*width, "act_fn", "ff_dtype"):
            yield from unused(config, key, "ff_type", None)
        return
    yield from at_least(config, 0, width[0], above=True)
    yield from at_least(config, 1, width[2])
    yield from rounding_rules(config, width[0], "feed-forward width", prefix)
