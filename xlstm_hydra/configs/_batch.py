"""The batch of a plan for which none is given."""

from __future__ import annotations

import math

from xlstm_hydra.problems import ConfigError

from .run import RunConfig
from .trainer import TrainerConfig


def fitting_batch(run: RunConfig) -> int:
    """The batch of a plan for which none is given: the least multiple of what its layout needs from the default on, so
    that any number of devices can be planned."""
    default, unit = TrainerConfig().batch_size, _batch_unit(run)
    return -(-default // unit) * unit


def _batch_unit(run: RunConfig) -> int:
    """What must divide the batch of a run, as far as the sizes of its mesh axes are known. Of a layout that is still to
    be chosen, what divides it over all the devices that tensor parallelism and pipelines leave."""
    if run.parallel.is_open():
        own = [max(run.parallel.pipeline_axis_size, 1), max(run.parallel.model_axis_size, 1)]
        return run.batch_unit(max((run.known_devices() or 1) // math.prod(own), 1), 1, own[0])
    try:
        sizes = list(run.parallel.axis_sizes(run.known_devices() or 0).values())
    except ConfigError:
        sizes = list(run.parallel.sizes().values())
    data, fsdp, pipeline, _ = (max(size, 1) for size in sizes)
    return run.batch_unit(data, fsdp, pipeline)
