"""How long and with what batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ._base import ConfigDict
from ._problems import Problem, at_least, below, divisors, either


@dataclass(kw_only=True)
class TrainerConfig(ConfigDict):
    """The training loop."""

    max_steps: int = 300
    """Optimizer steps in the whole run."""

    batch_size: int = 8
    """Examples per optimizer step, over all devices and processes."""

    gradient_accumulate_steps: int = 1
    """Parts that a step's batch is computed in, one after the other, to save memory. The gradient is that of the
    whole."""

    seed: int = 0
    """Seed of the initial parameters and of dropout."""

    eval_every_n_steps: int = 100
    """Steps between validations. 0: only at the end."""

    eval_batches: int = 8
    """Batches per validation, always the same ones. 0: no validation at all."""

    simulated_devices: int | None = None
    """Run each process on this many simulated CPU devices, to try a layout. null: on the devices that there are."""

    check_for_nan: bool = True
    """Stop with an error at the first loss that is not finite, before it is saved."""

    debug_nans: bool = False
    """Stop at the first operation that gives NaN and show where it is. Slow."""

    def rules(self) -> Iterator[Problem]:
        """Ranges; parts must divide the batch."""
        yield from at_least(self, 1, "max_steps", "batch_size", "gradient_accumulate_steps", "simulated_devices")
        yield from at_least(self, 0, "seed", "eval_every_n_steps", "eval_batches")
        yield from below(self, 2**32, "seed")
        parts = self.gradient_accumulate_steps
        if parts > 0 and self.batch_size > 0 and self.batch_size % parts:
            given = {"batch_size": self.batch_size, "gradient_accumulate_steps": parts}
            rule = "{gradient_accumulate_steps} must divide {batch_size}"
            yield Problem(given, rule, f"Set it to {either(divisors(self.batch_size))}.")
