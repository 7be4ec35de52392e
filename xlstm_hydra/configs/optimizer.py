"""Config group `optimizer`: parameter updates, with gradient clipping and weight decay. The scheduler varies the
learning rate over time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import NUMERICS, affects
from ._rules import at_least, below, own_name


@config_dataclass
class OptimizerConfig(ConfigDict):
    """Fields common to all optimizers. Gradients are clipped before the update. Weight decay is decoupled from the
    gradient and scaled by the learning rate."""

    name: str = field(metadata=affects(NUMERICS))
    """Name of the optimizer, set by the selected option."""

    lr: float = field(default=1e-3, metadata=affects(NUMERICS, traced=True))
    """Peak learning rate of the schedule."""

    grad_clip_norm: float | None = field(default=1.0, metadata=affects(NUMERICS, traced=True))
    """Maximum global norm of the gradient; a larger gradient is scaled down to this norm. null: no clipping by norm."""

    grad_clip_value: float | None = field(default=None, metadata=affects(NUMERICS, traced=True))
    """Maximum absolute value of each gradient element, applied after `grad_clip_norm`. null: no clipping by value."""

    weight_decay: float = field(default=0.0, metadata=affects(NUMERICS, traced=True))
    """Weight decay coefficient: each step subtracts the parameter times this coefficient times the current learning
    rate. 0: no weight decay."""

    weight_decay_include: list[str] = field(default_factory=lambda: [".*kernel"], metadata=affects(NUMERICS))
    """Regular expressions for the dotted paths of parameters with weight decay. A parameter is included if an
    expression matches any part of its path."""

    weight_decay_exclude: list[str] = field(default_factory=list, metadata=affects(NUMERICS))
    """Regular expressions for the dotted paths of parameters without weight decay, even if they match
    `weight_decay_include`."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and regular expressions."""
        yield from own_name(self)
        yield from at_least(self, 0, "lr", "weight_decay")
        yield from at_least(self, 0, "grad_clip_norm", "grad_clip_value", above=True)
        for key in ("weight_decay_include", "weight_decay_exclude"):
            for pattern in getattr(self, key):
                try:
                    re.compile(pattern)
                except (re.error, FutureWarning) as error:
                    yield Problem({key: pattern}, f"not a regular expression: {error}")
        if self.weight_decay == 0 and self.weight_decay_exclude:
            given = {"weight_decay_exclude": self.weight_decay_exclude, "weight_decay": 0}
            yield Problem(given, "has no effect without weight decay", "Set {weight_decay} above 0.")


@config_dataclass
class AdamWConfig(OptimizerConfig):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    name: str = "adamw"
    """Name of the optimizer, set by the selected option."""

    beta1: float = field(default=0.9, metadata=affects(NUMERICS, traced=True))
    """Decay rate of the moving average of the gradient, in [0, 1)."""

    beta2: float = field(default=0.95, metadata=affects(NUMERICS, traced=True))
    """Decay rate of the moving average of the squared gradient, in [0, 1)."""

    eps: float = field(default=1e-8, metadata=affects(NUMERICS, traced=True))
    """Epsilon added to the square root of the averaged squared gradient, by which updates are divided."""

    weight_decay: float = 0.1
    """Weight decay coefficient: each step subtracts the parameter times this coefficient times the current learning
    rate. 0: no weight decay."""

    nesterov: bool = field(default=False, metadata=affects(NUMERICS))
    """Use Nesterov momentum, as in NAdam."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges."""
        yield from super().rules()
        yield from at_least(self, 0, "beta1", "beta2", "eps")
        yield from below(self, 1, "beta1", "beta2")


@config_dataclass
class LionConfig(OptimizerConfig):
    """Lion (arXiv 2302.06675): each update is the sign of an interpolation between momentum and gradient. The learning
    rate should be 3 to 10 times smaller than for AdamW."""

    name: str = "lion"
    """Name of the optimizer, set by the selected option."""

    lr: float = 1e-4
    """Peak learning rate of the schedule."""

    beta1: float = field(default=0.9, metadata=affects(NUMERICS, traced=True))
    """Weight of the momentum in the interpolation with the gradient, in [0, 1)."""

    beta2: float = field(default=0.99, metadata=affects(NUMERICS, traced=True))
    """Decay rate of the momentum, in [0, 1)."""

    weight_decay: float = 0.1
    """Weight decay coefficient: each step subtracts the parameter times this coefficient times the current learning
    rate. 0: no weight decay."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges."""
        yield from super().rules()
        yield from at_least(self, 0, "beta1", "beta2")
        yield from below(self, 1, "beta1", "beta2")


@config_dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent, optionally with momentum."""

    name: str = "sgd"
    """Name of the optimizer, set by the selected option."""

    lr: float = 0.1
    """Peak learning rate of the schedule."""

    momentum: float = field(default=0.0, metadata=affects(NUMERICS, traced=True))
    """Decay rate of the momentum, in [0, 1). 0: no momentum."""

    nesterov: bool = field(default=False, metadata=affects(NUMERICS))
    """Use Nesterov momentum. Requires `momentum` above 0."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, and that Nesterov momentum is used only with `momentum` above 0."""
        yield from super().rules()
        yield from at_least(self, 0, "momentum")
        yield from below(self, 1, "momentum")
        if self.nesterov and self.momentum == 0:
            given = {"nesterov": True, "momentum": self.momentum}
            yield Problem(
                given, "Nesterov momentum requires a momentum greater than 0", "Set {momentum}, for example to 0.9."
            )
