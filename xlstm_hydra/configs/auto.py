"""A layout that is still to be chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from xlstm_hydra.problems import Problem

from ._fields import LAYOUT, affects
from ._rules import at_least, below, own_name
from .parallel import ParallelConfig


@dataclass(kw_only=True)
class AutoParallelConfig(ParallelConfig, schema="auto"):
    """The layout that is predicted to be the fastest of those that the devices allow and have the memory for.

    It is chosen when the number and kind of the devices is known, and the run is then one with that layout. What
    changes the results is never chosen: the batch and all types stay as they are. `remat` and `fsdp_modules` are kept
    where they name modules, and chosen where they are empty, and so are `trainer.pipeline_microbatches` where it is
    null and `trainer.gradient_accumulate_steps` where it is 1. Settings of a mesh axis that is chosen to have one
    device are left away.
    """

    name: str = field(default="auto", metadata=affects(LAYOUT))
    """Says that the layout is to be chosen."""

    data_axis_size: int = -1
    """As in a layout. -1: chosen."""

    fsdp_axis_size: int = -1
    """As in a layout. -1: chosen."""

    pipeline_axis_size: int = -1
    """As in a layout. -1: chosen."""

    model_axis_size: int = -1
    """As in a layout. -1: chosen."""

    fsdp_min_weight_size: int = 16384
    """As in a layout, where one with FSDP is chosen."""

    headroom: float = field(default=0.1, metadata=affects(LAYOUT))
    """Share of the devices' memory that the layout must leave free, for what a plan does not see."""

    def rules(self) -> Iterator[Problem]:
        """Also its name, and a share below 1."""
        yield from super().rules()
        yield from own_name(self)
        yield from at_least(self, 0, "headroom")
        yield from below(self, 1, "headroom")

    def inference_rules(self) -> Iterator[Problem]:
        """Any number of sizes can be chosen."""
        yield from ()

    def is_open(self) -> bool:
        """It is."""
        return True

    def axis_sizes(self, num_devices: int) -> dict[str, int]:
        """As of any layout, but a size that is still to be chosen is -1."""
        super().axis_sizes(num_devices)  # whether those that are given can be kept
        return dict(zip(self.axis_names(), self.sizes().values(), strict=True))
