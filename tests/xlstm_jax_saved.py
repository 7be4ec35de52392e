"""Checkpoints on disk as written by xlstm-jax: a tree of parameters and a metadata text."""

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util


def save_xlstm_jax(folder, tree, text, step=20):
    """Write a run folder with one checkpoint: parameters by path (see `xlstm_jax_tree.write`) and metadata."""
    checkpoint = folder / "checkpoints" / f"checkpoint_{step}"
    nested = traverse_util.unflatten_dict({tuple(path.split(".")): np.asarray(array) for path, array in tree.items()})
    with ocp.StandardCheckpointer() as writer:
        writer.save(checkpoint / "params", nested)
    (checkpoint / "metadata").mkdir()
    (checkpoint / "metadata" / "metadata").write_text(text)
    return folder
