"""Run folders with checkpoints that hold metadata and nothing else: what a config needs of them."""

import copy
import functools
import json

from hydra import compose, initialize

from xlstm_hydra.hydra import VERSION_BASE, load
from xlstm_hydra.metadata import write_metadata


def composed(*overrides):
    """The run that those overrides give, composed once in a test process."""
    return copy.deepcopy(_composed(*overrides))


@functools.cache
def _composed(*overrides):
    with initialize(config_path=None, **VERSION_BASE):
        return load(compose("config", overrides=list(overrides)))


def save(folder, run, step=20):
    """Record a run as if it had saved that step."""
    return save_text(folder, json.dumps(write_metadata(run)), step)


def save_text(folder, text, step=20):
    """A checkpoint with that metadata."""
    item = folder / "checkpoints" / str(step) / "metadata"
    item.mkdir(parents=True)
    (item / "metadata").write_text(text)
    return folder
