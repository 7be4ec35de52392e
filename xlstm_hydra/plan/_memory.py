"""Bytes on each device at the moment of a step that needs most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xlstm_hydra.models import Objective


@dataclass(frozen=True)
class Memory:
    """Bytes on each device at the moment of a step that needs most."""

    parameters: int
    """This device's share of the parameters."""

    gradients: int
    """Its share of their gradients, as far as they are there at that moment."""

    optimizer: int
    """Its share of the optimizer's state."""

    batch: int
    """Its share of the batch."""

    activations: int
    """What is kept of the forward pass for the backward pass; `parallel.remat` and `trainer.remat_policy` say what."""

    gathered: int
    """Whole parameters that FSDP has gathered, and their gradients before these are scattered."""

    logits: int
    """Logits, loss, and their gradients."""

    working: int
    """Intermediate results of what is being computed at that moment."""

    moment: str
    """What is being computed then, in words."""

    @property
    def total(self) -> int:
        """All of it."""
        kinds = (self.parameters, self.gradients, self.optimizer, self.batch)
        return sum(kinds) + self.activations + self.gathered + self.logits + self.working


def step_memory(objective: Objective, jaxpr: Any) -> Memory:
    """The memory of a training step.

    Args:
        objective: of the run.
        jaxpr: what `trace` makes of it.
    """
    raise NotImplementedError
