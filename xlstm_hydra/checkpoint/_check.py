"""Whether the parameters on disk are those of a model. Reads names and shapes, no array."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xlstm_hydra.configs import ModelConfig
from xlstm_hydra.models import list_parameters
from xlstm_hydra.runs import attributed_to

from ._from_xlstm_jax import is_xlstm_jax_tree, xlstm_jax_parts
from ._orbax import OrbaxLeaves
from ._parts import Shape, differing


class Misfit(NamedTuple):
    """An array whose shape on disk is another one than it should have."""

    leaf: str
    """Its path as it stands on disk."""

    expected: Shape | None
    """The shape that it should have. None: it should not be there."""

    found: Shape | None
    """The shape that it has. None: it is not there."""

    source: str
    """What says so: `model`, or `parameters`, the list in the metadata."""


def check_params(
    checkpoint: Path, model: ModelConfig, recorded: Mapping[str, Any] | None = None, key: str = "RUN"
) -> list[Misfit]:
    """Compare the parameters of a checkpoint, of ours or of xlstm-jax, with what its metadata says.

    Args:
        checkpoint: its folder.
        model: the recorded model, with the class itself as its `model_class`.
        recorded: the recorded list of parameters, if there is one: for each path, `{"shape": [...]}`.
        key: where the user named the checkpoint, for messages.

    Raises:
        ConfigError: the parameters cannot be read, or are a tree of xlstm-jax whose order is not known.
    """
    with attributed_to(key, checkpoint):
        leaves = OrbaxLeaves(checkpoint / "params")
        if is_xlstm_jax_tree(leaves.shapes):
            parts = xlstm_jax_parts(model, leaves.shapes)
            wanted = {path: shape for part in parts for path, shape in part.leaves.items()}
        else:
            wanted = {parameter.path: parameter.shape for parameter in list_parameters(model)}
    misfits = _misfits(leaves, wanted, "model")
    if recorded is not None:
        listed = {path: tuple(entry["shape"]) for path, entry in recorded.items()}
        misfits += _misfits(leaves, listed, "parameters")
    return misfits


def _misfits(leaves: OrbaxLeaves, wanted: Mapping[str, Shape], source: str) -> list[Misfit]:
    found = leaves.shapes
    return [Misfit(leaves.name(path), wanted.get(path), found.get(path), source) for path in differing(wanted, found)]
