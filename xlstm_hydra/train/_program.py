"""A run as compiled functions on a mesh: initialise, step, validate.

Loss and gradients are computed inside `shard_map`, where the model sees its shares of the parameters and the batch
and the collectives are the ones we wrote; the optimizer runs outside, on global arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xlstm_hydra.checkpoint import TrainState
from xlstm_hydra.configs import ConfigError, ModelConfig, Problem, RunConfig
from xlstm_hydra.models import (
    OVERLAPPING,
    LanguageModel,
    apply_model,
    box_sharded,
    build_model,
    init_model,
    knows_axes,
    list_parameters,
    remat_by_name,
)
from xlstm_hydra.optim import build_optimizer, learning_rate
from xlstm_hydra.parallel import Axes, Placement, batch_spec, build_mesh, mesh_axes, place, vary_over

from ._loss import cross_entropy

Batch = dict[str, Any]
"""inputs, targets, document_borders and loss_mask, each (B, T)."""


@dataclass(frozen=True)
class Program:
    """What is compiled for a run. `build_program` makes one."""

    run: RunConfig
    model: ModelConfig
    mesh: Mesh
    axes: Axes
    placements: tuple[Placement, ...]

    @cached_property
    def param_specs(self) -> Any:
        """Partition spec of every parameter, as a tree."""
        flat = {placement.parameter.path: placement.spec for placement in self.placements}
        return traverse_util.unflatten_dict(flat, sep=".")

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """How a batch is split."""
        return NamedSharding(self.mesh, batch_spec(self.run.parallel, self.mesh))

    @cached_property
    def batch_rows(self) -> list[int]:
        """The rows of a batch that the devices of this process need. Other processes may need the same ones."""
        batch = self.run.trainer.batch_size
        places = self.batch_sharding.addressable_devices_indices_map((batch,)).values()
        return sorted({row for place in places if place is not None for row in range(batch)[place[0]]})

    def put(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """This process's `batch_rows` of a batch, as parts of global arrays."""
        size, here = self.run.trainer.batch_size, {row: place for place, row in enumerate(self.batch_rows)}

        def array(local: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                return local[[here[row] for row in range(size)[index[0]]]]

            return jax.make_array_from_callback((size, *local.shape[1:]), self.batch_sharding, part)

        return {name: array(local) for name, local in batch.items()}

    @cached_property
    def abstract_batch(self) -> Batch:
        """Shapes, types and shardings of a batch."""
        config = self.model.model_config
        assert config is not None
        shape = (self.run.trainer.batch_size, config.get("context_length"))
        types = {"inputs": jnp.int32, "targets": jnp.int32, "document_borders": jnp.bool, "loss_mask": jnp.bool}
        return {key: jax.ShapeDtypeStruct(shape, dtype, sharding=self.batch_sharding) for key, dtype in types.items()}

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer chain."""
        return build_optimizer(self.run, self._abstract_params)

    @cached_property
    def _abstract_params(self) -> Any:
        return jax.eval_shape(lambda: init_model(build_model(self.model), jax.random.key(0)))

    @cached_property
    def param_shardings(self) -> Any:
        """Where every parameter lives, as a tree."""
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            self.param_specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    @cached_property
    def state_shardings(self) -> TrainState:
        """Where every array of the state lives."""
        whole, params = NamedSharding(self.mesh, PartitionSpec()), self.param_shardings
        abstract = jax.eval_shape(self.optimizer.init, self._abstract_params)
        opt_state = optax.tree.map_params(
            self.optimizer, lambda _, sharding: sharding, abstract, params, transform_non_params=lambda _: whole
        )
        return TrainState(params, opt_state, whole, whole)

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state: what a checkpoint is restored into."""
        shapes = jax.eval_shape(self._init)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.state_shardings,
        )

    def init(self, params: Any = None) -> TrainState:
        """The state before the first step. Its values depend on the model and the seed only.

        Args:
            params: given up for those of the state. None: random ones.
        """
        return jax.jit(self._init, out_shardings=self.state_shardings, donate_argnums=0)(params)

    def _init(self, params: Any = None) -> TrainState:
        seed = jax.random.key(self.run.trainer.seed)
        if params is None:
            params = init_model(build_model(self.model), jax.random.fold_in(seed, 0))
        rng = jax.random.key_data(jax.random.fold_in(seed, 1))
        return TrainState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32), rng)

    @cached_property
    def train_step(self) -> Any:
        """`state, batch -> state, metrics`, compiled; the old state is given up."""
        return jax.jit(self._train_step, donate_argnums=0, out_shardings=(self.state_shardings, None))

    def _train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, gradients = self.loss_and_gradients(
            state.params, batch, jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        )
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "grad_norm": optax.global_norm(gradients),
            "param_norm": optax.global_norm(params),
            "lr": jnp.asarray(learning_rate(self.run)(state.step), jnp.float32),
        }
        return TrainState(params, opt_state, state.step + 1, state.rng), metrics

    def loss_and_gradients(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        """Mean cross-entropy over all targets of the global batch, in nats, and its gradient.

        Every target counts the same, however the padding is spread over devices and microbatches.
        """
        mapped = self._shard_map(
            self._local_loss_and_gradients,
            (self.param_specs, self.batch_sharding.spec, PartitionSpec()),
            (PartitionSpec(), self.param_specs),
        )
        return mapped(params, batch, key)

    def _shard_map(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        # The check proves that what is declared equal on several devices is. A class without `axes` has no
        # collectives that could get it wrong, but may start a loop from constants, which the check would refuse.
        check = knows_axes(self.model)
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check)

    def _local_loss_and_gradients(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        axes, parts = self.axes, self.run.trainer.gradient_accumulate_steps
        # Marked as varying, a parameter's gradient stays local until it is summed once, below.
        varying = jax.tree.map(lambda param: vary_over(param, axes.summed), params)
        targets = jnp.maximum(axes.batch_sum(batch["loss_mask"].sum()), 1)

        def part_loss(params: Any, index: jax.Array | int) -> jax.Array:
            # Every `parts`-th row, so that a microbatch holds the same examples on every layout.
            rows = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:])[:, index], batch)
            return self._loss_sum(params, rows, jax.random.fold_in(key, index)) / targets

        gradient = jax.value_and_grad(part_loss)
        loss, gradients = gradient(varying, 0)
        if parts > 1:

            def accumulate(carry: Any, index: jax.Array) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, gradient(varying, index)), None

            (loss, gradients), _ = jax.lax.scan(accumulate, (loss, gradients), jnp.arange(1, parts))
        return axes.loss_sum(loss), jax.tree.map(self._sum_gradient, gradients, self.param_specs)

    def _sum_gradient(self, gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
        """Sum over the axes that computed parts of the loss with this parameter: all but those that it is split over,
        where the reduce-scatter has summed, or each stage has its own blocks."""
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
            key = jax.random.fold_in(key, self.axes.batch_index())  # or all devices would drop the same elements
        scanned = bool(self.model.model_config.get("scan_blocks", False))  # pyright: ignore[reportOptionalMemberAccess]
        names, policy = self.model.parallel.remat if key is not None else [], self.run.trainer.remat_policy
        with remat_by_name(names, policy, scanned="blocks" if scanned else None):
            return apply_model(
                module, boxed, batch["inputs"], batch["document_borders"], train=key is not None, dropout_key=key
            )

    @cached_property
    def eval_step(self) -> Any:
        """`params, batch -> sum of the cross-entropy, number of targets`, over the global batch, compiled."""

        def local(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
            count = batch["loss_mask"].sum()
            return self.axes.loss_sum(self._loss_sum(params, batch, None)), self.axes.batch_sum(count)

        specs = (self.param_specs, self.batch_sharding.spec)
        return jax.jit(self._shard_map(local, specs, (PartitionSpec(), PartitionSpec())))


def build_program(run: RunConfig, devices: Sequence[Any] | None = None) -> Program:
    """The program of a run whose `model_class` is a class, on `devices` (all there are).

    Raises:
        ConfigError: the layout does not fit the devices, or names modules that the model does not have.
    """
    mesh = build_mesh(run.parallel, devices, run.distributed.device_order)
    placements = tuple(place(parameter, run.parallel, mesh.shape) for parameter in list_parameters(run.model))
    data, fsdp, pipeline, _ = mesh.devices.shape
    microbatches = run.microbatches(data, fsdp, pipeline)
    axes = mesh_axes(run.parallel, mesh, microbatches=microbatches, stage_remat=run.trainer.pipeline_remat)
    _refuse_idle_settings(run, axes, placements)
    return Program(run, run.model, mesh, axes, placements)


def _refuse_idle_settings(run: RunConfig, axes: Axes, placements: Sequence[Placement]) -> None:
    """What no parameter or no layer of the model class takes part in would be ignored without a word."""
    model_class, parallel = run.model.model_class, run.parallel
    if axes.pipeline is not None and not issubclass(model_class, LanguageModel):
        fix = "Build the model on xlstm_hydra.models.LanguageModel, or leave this away."
        _refuse(run, {"pipeline_axis_size": axes.stages}, "cuts no stack of blocks into stages", fix)
    split = [placement.parameter for placement in placements if axes.tensor in placement.spec]
    overlapping = any(parameter.modules and parameter.modules[-1] in OVERLAPPING for parameter in split)
    if axes.overlap and not overlapping:
        fix = f"Use these layers of xlstm_hydra.models, with `axes`: {', '.join(OVERLAPPING)}; or leave this away."
        _refuse(run, {"tp_async_dense": True}, "has no tensor-parallel layer that exchanges piece by piece", fix)
    dtypes = {key: parallel.get(key) for key in ("fsdp_gather_dtype", "fsdp_grad_scatter_dtype") if parallel.get(key)}
    if dtypes and not any(placement.fsdp_axis is not None for placement in placements):
        size = {"fsdp_min_weight_size": parallel.fsdp_min_weight_size}
        fix = "Set parallel.fsdp_min_weight_size lower, or leave the types away."
        _refuse(run, dtypes | size, "has no parameter that is sharded and gathered", fix)


def _refuse(run: RunConfig, fields: dict[str, Any], text: str, fix: str) -> NoReturn:
    given = {f"parallel.{key}": value for key, value in fields.items()}
    raise ConfigError([Problem(given, f"{run.model.class_path()} {text}", fix)])
