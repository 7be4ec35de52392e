"""Optimizer and schedule of a run, from Optax."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from xlstm_hydra.configs import (
    AdamWConfig,
    ConfigError,
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    LionConfig,
    OptimizerConfig,
    Problem,
    RunConfig,
    SchedulerConfig,
    SGDConfig,
)

_MAIN_PART: dict[type[SchedulerConfig], Callable[[Any, float, int], optax.Schedule]] = {
    ConstantConfig: lambda config, lr, steps: optax.constant_schedule(lr),
    CosineConfig: lambda config, lr, steps: optax.cosine_decay_schedule(lr, steps, alpha=config.end_lr_factor),
    LinearConfig: lambda config, lr, steps: optax.linear_schedule(lr, lr * config.end_lr_factor, steps),
    ExponentialConfig: lambda config, lr, steps: optax.exponential_decay(
        lr, steps, config.end_lr_factor, end_value=lr * config.end_lr_factor
    ),
}


def learning_rate(run: RunConfig) -> optax.Schedule:
    """The learning rate of each step, from step 0.

    The warm-up reaches `optimizer.lr` at step `warmup_steps`, the main part its end at `total - cooldown_steps`, and
    the cool-down its end at `total`.
    """
    config, lr, total = run.scheduler, run.optimizer.lr, run.schedule_steps
    main_steps = total - config.warmup_steps - config.cooldown_steps
    main = _MAIN_PART[type(config)](config, lr, max(main_steps, 1))
    parts, boundaries = [main], []
    if config.warmup_steps:
        parts.insert(0, optax.linear_schedule(0.0, lr, config.warmup_steps))
        boundaries.append(config.warmup_steps)
    if config.cooldown_steps:
        start: Any = main(main_steps)
        parts.append(optax.linear_schedule(start, lr * config.cooldown_lr_factor, config.cooldown_steps))
        boundaries.append(total - config.cooldown_steps)
    return optax.join_schedules(parts, boundaries)


def decay_mask(run: RunConfig, params: Any) -> Any:
    """A tree of booleans: which parameters weight decay applies to.

    Raises:
        ConfigError: weight decay is on, and a pattern of `optimizer.weight_decay_include` or `_exclude` matches
        nothing.
    """
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [_dotted(path) for path, _ in flat]
    optimizer = run.optimizer
    if optimizer.weight_decay:
        _refuse_idle_patterns(optimizer, paths)
    config = run.model.model_config
    on_embedding = None if config is None else config.get("weight_decay_on_embedding")

    def decays(path: Any, _: Any) -> bool:
        name = _dotted(path)
        if _matches(name, optimizer.weight_decay_exclude):
            return False
        if on_embedding is not None and name.startswith("token_embedding."):
            return on_embedding  # the model's own switch
        return _matches(name, optimizer.weight_decay_include)

    return jax.tree_util.tree_map_with_path(decays, params)


def _refuse_idle_patterns(optimizer: OptimizerConfig, paths: list[str]) -> None:
    problems = [
        Problem({f"optimizer.{key}": pattern}, "matches no parameter", f"Parameters are named like {paths[0]}.")
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


def build_optimizer(run: RunConfig, params: Any) -> optax.GradientTransformation:
    """Clipping, the optimizer's direction, decoupled weight decay, learning rate, in this order.

    Args:
        run: the config.
        params: the parameter tree, or its shapes.
    """
    config = run.optimizer
    by_norm = optax.clip_by_global_norm(config.grad_clip_norm) if config.grad_clip_norm else optax.identity()
    by_value = optax.clip(config.grad_clip_value) if config.grad_clip_value else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask(run, params))
    direction = _DIRECTIONS[type(config)](config)
    # Always five links, so that the state of one run fits another that clips or decays differently.
    return optax.chain(by_norm, by_value, direction, decay, optax.scale_by_learning_rate(learning_rate(run)))


def _adam(config: AdamWConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2, config.eps, nesterov=config.nesterov)


def _lion(config: LionConfig) -> optax.GradientTransformation:
    return optax.scale_by_lion(config.beta1, config.beta2)


def _sgd(config: SGDConfig) -> optax.GradientTransformation:
    return optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()


_DIRECTIONS: dict[type[OptimizerConfig], Callable[[Any], optax.GradientTransformation]] = {
    AdamWConfig: _adam,
    LionConfig: _lion,
    SGDConfig: _sgd,
}
