"""What would split the parameters that FSDP leaves whole."""

from __future__ import annotations

import math
from collections.abc import Mapping

from xlstm_hydra.configs import ParallelConfig
from xlstm_hydra.parallel import LAYERS, Placement
from xlstm_hydra.problems import divisors, either


def split_with(placement: Placement, parallel: ParallelConfig, sizes: Mapping[str, int]) -> str | None:
    """What would let the FSDP mesh axis split a parameter that it does not split. None: nothing would, as there is no
    array axis for it.

    Args:
        placement: of the parameter.
        parallel: the layout.
        sizes: of the mesh axes.
    """
    parameter, devices = placement.parameter, sizes[parallel.fsdp_axis_name]
    own = [axis for axis, name in enumerate(parameter.names) if name != LAYERS]
    spec = [*placement.spec, *[None] * (len(parameter.shape) - len(placement.spec))]
    free = [parameter.shape[axis] for axis in own if spec[axis] is None]
    usable = sorted({size for length in free for size in divisors(length)} - {1})
    if not usable:
        return None
    ways = []
    if devices not in usable:
        ways.append(f"parallel.fsdp_axis_size of {either(usable)}")
    if not set(parameter.modules) & set(parallel.fsdp_modules):
        ways.append(f"{either(dict.fromkeys(parameter.modules))} in parallel.fsdp_modules")
    elements = math.prod(parameter.shape[axis] // sizes.get(str(spec[axis]), 1) for axis in own)
    if elements < parallel.fsdp_min_weight_size:
        ways.append(f"parallel.fsdp_min_weight_size of {elements} or less")
    return " and ".join(ways)
