"""The Optax optimizer and the learning rate schedule of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from xlstm_hydra.configs import (
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    LionConfig,
    OptimizerConfig,
    RunConfig,
    SchedulerConfig,
    SGDConfig,
    effects_of,
)
from xlstm_hydra.problems import ConfigError, Problem

Schedule = Callable[[int], float]
"""Function that maps a step, counted from 0, to its learning rate."""

_MAIN_PART: dict[type[SchedulerConfig], Callable[[Any, float], float]] = {
    ConstantConfig: lambda config, done: 1.0,
    CosineConfig: lambda config, done: _between(config.end_lr_factor, 1.0, (1 + math.cos(math.pi * done)) / 2),
    LinearConfig: lambda config, done: _between(1.0, config.end_lr_factor, done),
    ExponentialConfig: lambda config, done: config.end_lr_factor**done,
}
"""Learning rate divided by the peak rate, in the main part of the schedule (between warmup and cooldown). The functions
take the scheduler config and the completed fraction of the main part, from 0 to 1."""


def learning_rate(run: RunConfig) -> Schedule:
    """Return the learning rate schedule of a run.

    The warmup rises from 0 and reaches `optimizer.lr` at step `warmup_steps`. The main part ends at step
    `total - cooldown_steps`, and the cooldown at step `total`, where `total` is `run.schedule_steps`. The rate is
    computed on the host and passed to the compiled step as an argument, so that changing the schedule does not trigger
    recompilation.
    """
    config, lr, total = run.scheduler, run.optimizer.lr, run.schedule_steps
    warmup, cooldown = config.warmup_steps, config.cooldown_steps
    main, main_steps = _MAIN_PART[type(config)], total - warmup - cooldown

    def rate(step: int) -> float:
        if step < warmup:
            return lr * step / warmup
        if cooldown == 0 or step < total - cooldown:
            return lr * main(config, _share(step - warmup, main_steps))
        end = main(config, _share(main_steps, main_steps))
        return lr * _between(end, config.cooldown_lr_factor, _share(step - (total - cooldown), cooldown))

    return rate


def _share(steps: int, of: int) -> float:
    return min(steps / max(of, 1), 1.0)


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def decay_mask(run: RunConfig, params: Any) -> Any:
    """Return a tree with the structure of `params` that is True for parameters with weight decay.

    Raises:
        ConfigError: `optimizer.weight_decay` is not 0, and a pattern in `optimizer.weight_decay_include` or
            `optimizer.weight_decay_exclude` matches no parameter.
    """
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [_dotted(path) for path, _ in flat]
    optimizer = run.optimizer
    if optimizer.weight_decay:
        _refuse_unused_patterns(optimizer, paths)
    config = run.model.model_config
    on_embedding = None if config is None else config.get("weight_decay_on_embedding")

    def decays(path: Any, _: Any) -> bool:
        name = _dotted(path)
        if _matches(name, optimizer.weight_decay_exclude):
            return False
        if on_embedding is not None and name.startswith("token_embedding."):
            return on_embedding  # set by `model.weight_decay_on_embedding`
        return _matches(name, optimizer.weight_decay_include)

    return jax.tree_util.tree_map_with_path(decays, params)


def _refuse_unused_patterns(optimizer: OptimizerConfig, paths: list[str]) -> None:
    problems = [
        Problem({f"optimizer.{key}": pattern}, "matches no parameter", f"Example of a parameter name: {paths[0]}.")
        for key in ("weight_decay_include", "weight_decay_exclude")
        for pattern in optimizer.get(key)
        if not any(re.search(pattern, path) for path in paths)
    ]
    if problems:
        raise ConfigError(problems)


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _matches(name: str, patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def hyperparameters(config: OptimizerConfig) -> dict[str, float]:
    """Return the hyperparameters passed to the compiled step as arguments, so that changing them does not trigger
    recompilation.

    `lr` is the peak learning rate. Fields that are null, such as the threshold of disabled clipping, are omitted.
    """
    numbers = {name: config.get(name) for name, effect in effects_of(type(config)).items() if effect.traced}
    return {name: float(value) for name, value in numbers.items() if value is not None}


def build_optimizer(
    run: RunConfig, params: Any, numbers: Mapping[str, Any] | None = None
) -> optax.GradientTransformation:
    """Build the optimizer: gradient clipping, update direction, decoupled weight decay, and learning rate, in this
    order.

    The update directions are those of AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101), Lion (Chen et
    al., https://arxiv.org/abs/2302.06675) and SGD with momentum.

    Args:
        run: the run config, which also enables or disables clipping, momentum and Nesterov momentum.
        params: the parameter tree, as arrays or shapes.
        numbers: values of the hyperparameters in one step, by name; see `hyperparameters`. None: the values in the
            config, with the peak learning rate.

    Raises:
        ConfigError: a weight decay pattern matches no parameter; see `decay_mask`.
    """
    config, mask = run.optimizer, decay_mask(run, params)
    numbers = hyperparameters(config) if numbers is None else numbers
    by_norm = optax.clip_by_global_norm(numbers["grad_clip_norm"]) if config.grad_clip_norm else optax.identity()
    by_value = optax.clip(numbers["grad_clip_value"]) if config.grad_clip_value else optax.identity()
    decay = optax.add_decayed_weights(numbers["weight_decay"], mask=mask)
    direction = _DIRECTIONS[type(config)](config, numbers)
    # Always five transformations, so that the structure of the optimizer state does not depend on clipping or decay.
    # The last transformation counts steps; all checkpoints contain this counter.
    return optax.chain(by_norm, by_value, direction, decay, optax.scale_by_learning_rate(lambda _: numbers["lr"]))


def _adam(config: AdamWConfig, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
    return optax.scale_by_adam(numbers["beta1"], numbers["beta2"], numbers["eps"], nesterov=config.nesterov)


def _lion(config: LionConfig, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
    return optax.scale_by_lion(numbers["beta1"], numbers["beta2"])


def _sgd(config: SGDConfig, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
    return optax.trace(numbers["momentum"], config.nesterov) if config.momentum else optax.identity()


_DIRECTIONS: dict[type[OptimizerConfig], Callable[[Any, Mapping[str, Any]], optax.GradientTransformation]] = {
    AdamWConfig: _adam,
    LionConfig: _lion,
    SGDConfig: _sgd,
}
