"""How gradients become updates. The learning rate over time is the scheduler's."""

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
    """What every optimizer has. Clipping comes first, weight decay is decoupled from the gradient and scaled by the
    learning rate."""

    name: str = field(metadata=affects(NUMERICS))
    """Which optimizer this is."""

    lr: float = field(default=1e-3, metadata=affects(NUMERICS, traced=True))
    """Peak learning rate."""

    grad_clip_norm: float | None = field(default=1.0, metadata=affects(NUMERICS, traced=True))
    """Scale the gradient down to this global norm where it is larger. null: no clipping."""

    grad_clip_value: float | None = field(default=None, metadata=affects(NUMERICS, traced=True))
    """Clip every element of the gradient to plus or minus this, after the clipping by norm. null: no clipping."""

    weight_decay: float = field(default=0.0, metadata=affects(NUMERICS, traced=True))
    """Share of a parameter that is subtracted per unit of learning rate. 0: no decay."""

    weight_decay_include: list[str] = field(default_factory=lambda: [".*kernel"], metadata=affects(NUMERICS))
    """Regular expressions, searched in the dotted path of a parameter: those that match any of them decay."""

    weight_decay_exclude: list[str] = field(default_factory=list, metadata=affects(NUMERICS))
    """Regular expressions: parameters that match any of them do not decay, whatever includes them."""

    def rules(self) -> Iterator[Problem]:
        """Ranges and regular expressions."""
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
            yield Problem(given, "without weight decay there is nothing to exclude", "Set {weight_decay} above 0.")


@config_dataclass
class AdamWConfig(OptimizerConfig):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    name: str = "adamw"
    """Which optimizer this is."""

    beta1: float = field(default=0.9, metadata=affects(NUMERICS, traced=True))
    """Decay of the mean of the gradient."""

    beta2: float = field(default=0.95, metadata=affects(NUMERICS, traced=True))
    """Decay of the mean of the squared gradient."""

    eps: float = field(default=1e-8, metadata=affects(NUMERICS, traced=True))
    """Added to the root of the mean squared gradient."""

    weight_decay: float = 0.1
    """Share of a parameter that is subtracted per unit of learning rate. 0: no decay."""

    nesterov: bool = field(default=False, metadata=affects(NUMERICS))
    """Use the Nesterov momentum of NAdam."""

    def rules(self) -> Iterator[Problem]:
        """Ranges."""
        yield from super().rules()
        yield from at_least(self, 0, "beta1", "beta2", "eps")
        yield from below(self, 1, "beta1", "beta2")


@config_dataclass
class LionConfig(OptimizerConfig):
    """Lion (arXiv 2302.06675): the sign of an interpolated momentum. Wants a learning rate 3 to 10 times below
    AdamW's."""

    name: str = "lion"
    """Which optimizer this is."""

    lr: float = 1e-4
    """Peak learning rate."""

    beta1: float = field(default=0.9, metadata=affects(NUMERICS, traced=True))
    """Weight of the momentum in the update."""

    beta2: float = field(default=0.99, metadata=affects(NUMERICS, traced=True))
    """Decay of the momentum."""

    weight_decay: float = 0.1
    """Share of a parameter that is subtracted per unit of learning rate. 0: no decay."""

    def rules(self) -> Iterator[Problem]:
        """Ranges."""
        yield from super().rules()
        yield from at_least(self, 0, "beta1", "beta2")
        yield from below(self, 1, "beta1", "beta2")


@config_dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent, with momentum if asked for."""

    name: str = "sgd"
    """Which optimizer this is."""

    lr: float = 0.1
    """Peak learning rate."""

    momentum: float = field(default=0.0, metadata=affects(NUMERICS, traced=True))
    """Decay of the momentum. 0: none."""

    nesterov: bool = field(default=False, metadata=affects(NUMERICS))
    """Look ahead along the momentum."""

    def rules(self) -> Iterator[Problem]:
        """Ranges; Nesterov needs a momentum."""
        yield from super().rules()
        yield from at_least(self, 0, "momentum")
        yield from below(self, 1, "momentum")
        if self.nesterov and self.momentum == 0:
            given = {"nesterov": True, "momentum": self.momentum}
            yield Problem(given, "Nesterov needs a momentum", "Set {momentum}, for example to 0.9.")
