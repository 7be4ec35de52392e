"""The state that a training step changes."""

from __future__ import annotations

from typing import Any, NamedTuple


class TrainState(NamedTuple):
    """What training changes: global arrays, or what stands for them (shardings, shapes)."""

    params: Any
    """Tree of float32 parameters."""

    opt_state: Any
    """The optimizer's state."""

    step: Any
    """Optimizer steps done, int32."""

    rng: Any
    """Raw random key, which the key of each step is folded from."""
