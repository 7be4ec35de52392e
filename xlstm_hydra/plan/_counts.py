"""Operations, memory traffic and collectives of a traced program, on each device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Exchange:
    """A collective of a step, as often as it runs."""

    operation: str
    """all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute."""

    axes: tuple[str, ...]
    """Names of the mesh axes whose devices exchange with each other."""

    dtype: str
    """Element type, by NumPy's name."""

    bytes: int
    """Bytes of its larger side on each device: what is gathered, what is scattered, what is sent."""

    count: int
    """How often it runs in a step."""


@dataclass(frozen=True)
class Counts:
    """What each device does in a step."""

    product_flops: dict[str, float] = field(default_factory=dict)
    """Floating-point operations of matrix products and convolutions, by the type of their operands."""

    other_flops: float = 0.0
    """Floating-point operations of everything else, one per element."""

    traffic: float = 0.0
    """Bytes read from and written to memory, as far as operations are not fused."""

    exchanges: tuple[Exchange, ...] = ()
    """Collectives, alike ones together."""

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return sum(self.product_flops.values()) + self.other_flops


def count(jaxpr: Any) -> Counts:
    """The counts of a program from `trace`."""
    raise NotImplementedError
