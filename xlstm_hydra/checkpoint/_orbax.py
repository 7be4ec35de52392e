"""The leaves of a tree that Orbax wrote, read a few at a time as arrays on the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from xlstm_hydra.runs import reading

from ._parts import Shape

_BOX = "value"
"""Last name in the path of an array that stood in a box (`flax.linen.Partitioned`) when it was saved."""


class OrbaxLeaves:
    """The arrays of one item of a checkpoint by path, without the boxes that they stood in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with reading("parameters", folder):
            saved: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(folder))
        leaves = {_names(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(saved.tree)[0]}
        self._on_disk = {".".join(names[:-1] if names[-1] == _BOX else names): names for names in leaves}
        self.shapes: dict[str, Shape] = {path: tuple(leaves[names].shape) for path, names in self._on_disk.items()}

    def read(self, paths: Sequence[str]) -> list[np.ndarray]:
        """Some of them, in this order."""
        wanted = {self._on_disk[path]: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths}
        tree = traverse_util.unflatten_dict(wanted)
        with reading("parameters", self._folder), ocp.PyTreeCheckpointer() as reader:
            args = ocp.args.PyTreeRestore(item=tree, restore_args=tree, partial_restore=True)
            found: Any = traverse_util.flatten_dict(reader.restore(self._folder, args=args))
        return [found[self._on_disk[path]] for path in paths]

    def name(self, path: str) -> str:
        """A path as it stands on disk."""
        return ".".join(self._on_disk.get(path, (path,)))


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
