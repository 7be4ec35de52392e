"""Loss and gradients of a run on a mesh.

Both are computed inside `jax.shard_map`: the model sees the local shards of parameters and batch, and all collectives
are explicit. For tracing, a mesh without devices (`jax.sharding.AbstractMesh`) is sufficient.

Array axes: B batch, T time, V the local shard of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec

from xlstm_hydra.configs import ModelConfig, RunConfig
from xlstm_hydra.models import (
    OVERLAPPING,
    LanguageModel,
    apply_model,
    box_sharded,
    build_model,
    knows_axes,
    list_parameters,
    remat_by_name,
)
from xlstm_hydra.parallel import AnyMesh, Axes, Parameter, Placement, batch_spec, mesh_axes, shard_parameter, vary_over
from xlstm_hydra.problems import ConfigError, Problem

Batch = Mapping[str, Any]
"""Arrays `inputs`, `targets`, `document_borders` and `loss_mask`, each of shape `[B, T]`."""

BATCH_TYPES = {"inputs": jnp.int32, "targets": jnp.int32, "document_borders": jnp.bool, "loss_mask": jnp.bool}
"""Dtype of each array of a batch."""


@dataclass(frozen=True)
class ShardedLoss:
    """The loss of a run on a mesh, and its gradients. Returned by `build_sharded_loss`."""

    run: RunConfig
    mesh: AnyMesh
    axes: Axes
    placements: tuple[Placement, ...]

    @property
    def model(self) -> ModelConfig:
        """The model config; `model_class` is the class itself."""
        return self.run.model

    @cached_property
    def param_specs(self) -> Any:
        """Tree with the partition spec of every parameter."""
        flat = {placement.parameter.path: placement.spec for placement in self.placements}
        return traverse_util.unflatten_dict(flat, sep=".")

    @cached_property
    def batch_spec(self) -> PartitionSpec:
        """Partition spec of a batch."""
        return batch_spec(self.run.parallel, self.mesh)

    @cached_property
    def abstract_params(self) -> Any:
        """Tree with the shapes and dtypes of the parameters."""
        return abstract_params(self.placements)

    @cached_property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch."""
        config = self.model.model_config
        assert config is not None
        shape = (self.run.trainer.batch_size, config.get("context_length"))
        return {key: jax.ShapeDtypeStruct(shape, dtype) for key, dtype in BATCH_TYPES.items()}

    def loss_and_gradients(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        """Return the mean cross-entropy over all targets of the global batch, in nats, and its gradients.

        Every target has the same weight, regardless of how padding is distributed over devices and microbatches.

        Args:
            params: tree of global parameters.
            batch: global arrays, each of shape `[B, T]`.
            key: random key for dropout.
        """
        mapped = self._shard_map(
            self._local_loss_and_gradients,
            (self.param_specs, self.batch_spec, PartitionSpec()),
            (PartitionSpec(), self.param_specs),
        )
        return mapped(params, batch, key)

    def _shard_map(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        # `check_vma` proves that outputs declared as replicated are equal on all devices. A model class without `axes`
        # has no collectives that could break this, but may start a loop from constants, which the check would reject.
        check = knows_axes(self.model)
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check)

    def _local_loss_and_gradients(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        axes, parts = self.axes, self.run.trainer.gradient_accumulate_steps
        # Mark parameters as varying, so that their gradients stay local until they are summed once, below.
        varying = jax.tree.map(lambda param: vary_over(param, axes.summed), params)
        targets = jnp.maximum(axes.batch_sum(batch["loss_mask"].sum()), 1)

        def part_loss(params: Any, index: jax.Array | int) -> jax.Array:
            # Take every `parts`-th row, so that each part has the same examples on every layout.
            rows = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:])[:, index], batch)
            return self._loss_sum(params, rows, jax.random.fold_in(key, index)) / targets

        gradient = jax.value_and_grad(part_loss)
        if parts == 1:
            loss, gradients = gradient(varying, 0)
        else:

            def accumulate(total: Any, index: jax.Array) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, gradient(varying, index)), None

            nothing = vary_over(jnp.zeros(()), axes.summed), jax.tree.map(jnp.zeros_like, varying)
            (loss, gradients), _ = jax.lax.scan(accumulate, nothing, jnp.arange(parts))
        return axes.loss_sum(loss), jax.tree.map(self._sum_gradient, gradients, self.param_specs)

    def _sum_gradient(self, gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
        """Sum a gradient over the mesh axes on which devices computed parts of the loss with this parameter. Mesh axes
        over which the parameter is sharded are excluded: the reduce-scatter has already summed the gradient (FSDP), or
        each stage has its own blocks (pipeline)."""
        names = tuple(name for name in self.axes.summed if name not in spec)
        return jax.lax.psum(gradient, names) if names else gradient

    def _loss_sum(self, params: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        logits = self._forward(params, batch, key)
        vocab_size = self.model.model_config.get("vocab_size")  # pyright: ignore[reportOptionalMemberAccess]
        targets, mask = (self.axes.stage_rows(batch[name]) for name in ("targets", "loss_mask"))
        losses = cross_entropy(logits, targets, vocab_size, self.axes)
        return jnp.where(mask, losses, 0).sum()

    def _forward(self, params: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        boxed = box_sharded(params, self.placements, self.model)
        module: nn.Module = build_model(self.model, self.axes)
        if key is not None and not knows_axes(self.model):
            key = jax.random.fold_in(key, self.axes.batch_index())  # otherwise all devices would drop the same elements
        scanned = bool(self.model.model_config.get("scan_blocks", False))  # pyright: ignore[reportOptionalMemberAccess]
        names, policy = self.model.parallel.remat if key is not None else [], self.run.trainer.remat_policy
        with remat_by_name(names, policy, scanned="blocks" if scanned else None):
            return apply_model(
                module, boxed, batch["inputs"], batch["document_borders"], train=key is not None, dropout_key=key
            )

    def loss_sum_and_count(self, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the cross-entropy in nats and the number of targets, both over the global batch. Dropout is
        disabled."""

        def local(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
            count = batch["loss_mask"].sum()
            return self.axes.loss_sum(self._loss_sum(params, batch, None)), self.axes.batch_sum(count)

        specs = (self.param_specs, self.batch_spec)
        return self._shard_map(local, specs, (PartitionSpec(), PartitionSpec()))(params, batch)


def abstract_params(placements: Sequence[Placement]) -> Any:
    """Return a tree with the shapes and dtypes of the parameters."""
    parameters = [placement.parameter for placement in placements]
    shapes = {each.path: jax.ShapeDtypeStruct(each.shape, jnp.dtype(each.dtype)) for each in parameters}
    return traverse_util.unflatten_dict(shapes, sep=".")


def build_sharded_loss(run: RunConfig, mesh: AnyMesh, parameters: Sequence[Parameter] | None = None) -> ShardedLoss:
    """Return the loss of a run.

    Args:
        run: the config; `model_class` must be the class itself.
        mesh: mesh of the run's layout.
        parameters: parameters of the model. None: they are listed first.

    Raises:
        ConfigError: the layout names modules that the model does not have, or has settings that would have no effect.
    """
    placements = tuple(
        shard_parameter(parameter, run.parallel, mesh.shape) for parameter in parameters or list_parameters(run.model)
    )
    data, fsdp, pipeline, _ = mesh.shape.values()
    microbatches = run.trainer.microbatches(data, fsdp, pipeline)
    axes = mesh_axes(run.parallel, mesh, microbatches=microbatches, stage_remat=run.trainer.pipeline_remat)
    if problems := list(unused_settings(run, axes, placements)):
        raise ConfigError(problems)
    return ShardedLoss(run, mesh, axes, placements)


def unused_settings(run: RunConfig, axes: Axes, placements: Sequence[Placement]) -> Iterator[Problem]:
    """Yield a problem for every layout setting that the model class does not support and would ignore silently."""
    model_class, parallel = run.model.model_class, run.parallel
    if axes.pipeline is not None and not issubclass(model_class, LanguageModel):
        fix = "Derive the class from xlstm_hydra.models.LanguageModel, or omit this setting."
        text = "does not support pipeline parallelism: it does not split its blocks into stages"
        yield _unused(run, {"pipeline_axis_size": axes.stages}, text, fix)
    split = [placement.parameter for placement in placements if axes.tensor in placement.spec]
    overlapping = any(parameter.modules and parameter.modules[-1] in OVERLAPPING for parameter in split)
    if axes.overlap and not overlapping:
        fix = f"Use layers of xlstm_hydra.models with `axes` ({', '.join(OVERLAPPING)}), or omit this setting."
        yield _unused(run, {"tp_async_dense": True}, "has no tensor-parallel layer with collective matmul", fix)
    dtypes = {key: parallel.get(key) for key in ("fsdp_gather_dtype", "fsdp_grad_scatter_dtype") if parallel.get(key)}
    if dtypes and not any(placement.fsdp_axis is not None for placement in placements):
        size = {"fsdp_min_weight_size": parallel.fsdp_min_weight_size}
        fix = "Lower parallel.fsdp_min_weight_size, or omit the dtypes."
        yield _unused(run, dtypes | size, "has no parameter that FSDP shards", fix)


def _unused(run: RunConfig, fields: dict[str, Any], text: str, fix: str) -> Problem:
    given = {f"parallel.{key}": value for key, value in fields.items()}
    return Problem(given, f"{run.model.class_path()} {text}", fix)


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, vocab_size: int, axes: Axes) -> jax.Array:
    """Return the negative log probability of each target in nats, in float32 or wider.

    The logits cover either the whole vocabulary, V = `vocab_size`, or the vocabulary shard of this tensor-parallel
    device. For a shard, the sum over the vocabulary is a collective, and no device needs the complete logits.

    Args:
        logits_BTV: `float[B, T, V]`.
        targets_BT: token ids, `int[B, T]`.
        vocab_size: size of the whole vocabulary.
        axes: the mesh axes.

    Returns:
        `float[B, T]`: `logsumexp(logits) - logits[target]`.

    Raises:
        ValueError: V is neither `vocab_size` nor the size of a shard.
    """
    width = logits_BTV.shape[-1]
    if width == vocab_size:
        axes = Axes()
    elif width * axes.tensor_size != vocab_size:
        raise ValueError(f"expected {vocab_size} logits per token (model.vocab_size) from the model, got {width}")
    logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    first = axes.index() * width
    peak_BT = axes.max(logits_BTV.max(-1))
    total_BT = axes.sum(jnp.exp(logits_BTV - peak_BT[..., None]).sum(-1))
    local_BT = targets_BT - first
    mine_BT = (local_BT >= 0) & (local_BT < width)
    picked_BT = jnp.take_along_axis(logits_BTV, jnp.clip(local_BT, 0, width - 1)[..., None], axis=-1)[..., 0]
    return jnp.log(total_BT) + peak_BT - axes.sum(jnp.where(mine_BT, picked_BT, 0))
