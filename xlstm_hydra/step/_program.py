"""A run as compiled functions on a mesh: initialization, training step and validation.

Loss and gradients are computed by `ShardedLoss`, inside `shard_map`. The optimizer runs outside `shard_map`, on global
arrays. The seed and the hyperparameters of the optimizer are arguments of the compiled functions, so sweep jobs that
differ only in them share the compiled functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xlstm_hydra._jax_internals import options_for_equal_bits
from xlstm_hydra.configs import ModelConfig, RunConfig
from xlstm_hydra.models import build_model, init_model
from xlstm_hydra.optim import Schedule, build_optimizer, hyperparameters, learning_rate
from xlstm_hydra.parallel import Axes, Placement, build_mesh

from ._key import plan_key
from ._sharded_loss import Batch, ShardedLoss, build_sharded_loss

MakeOptimizer = Callable[..., optax.GradientTransformation]
"""Function `(run, params, numbers) -> optimizer`; see `optim.build_optimizer`."""


class TrainState(NamedTuple):
    """The training state: global arrays, their shardings, or their shapes and dtypes."""

    params: Any
    """Tree of float32 parameters."""

    opt_state: Any
    """State of the optimizer."""

    step: Any
    """Number of completed optimizer steps, an int32 scalar."""

    rng: Any
    """Key data (`jax.random.key_data`) from which the random key of each step is derived."""


@dataclass(frozen=True)
class Program:
    """The compiled functions of a run, returned by `build_program`."""

    run: RunConfig
    mesh: Mesh
    sharded_loss: ShardedLoss
    make_optimizer: MakeOptimizer
    shared_cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Compiled functions and the plan, shared with programs of runs that differ only in the seed and
    hyperparameters."""

    @property
    def model(self) -> ModelConfig:
        """The model config; `model_class` is the class itself."""
        return self.run.model

    @property
    def axes(self) -> Axes:
        """The mesh axes, as passed to the model."""
        return self.sharded_loss.axes

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Placement of every parameter on the mesh."""
        return self.sharded_loss.placements

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of a batch."""
        return NamedSharding(self.mesh, self.sharded_loss.batch_spec)

    @cached_property
    def batch_rows(self) -> list[int]:
        """Row indices of the global batch that the devices of this process need. Several processes may need the same
        rows."""
        batch = self.run.trainer.batch_size
        shards = self.batch_sharding.addressable_devices_indices_map((batch,)).values()
        return sorted({row for shard in shards if shard is not None for row in range(batch)[shard[0]]})

    def put(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Transfer the rows of a batch that this process needs to its devices.

        Args:
            batch: the `batch_rows` of each array, of shape `[len(batch_rows), T]`.

        Returns:
            Global arrays of shape `[batch_size, T]`.
        """
        size, here = self.run.trainer.batch_size, {row: index for index, row in enumerate(self.batch_rows)}

        def array(local: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                return local[[here[row] for row in range(size)[index[0]]]]

            return jax.make_array_from_callback((size, *local.shape[1:]), self.batch_sharding, part)

        return {name: array(local) for name, local in batch.items()}

    @cached_property
    def abstract_batch(self) -> Batch:
        """Shapes, dtypes and shardings of a batch."""
        return {
            key: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=self.batch_sharding)
            for key, part in self.sharded_loss.abstract_batch.items()
        }

    @cached_property
    def schedule(self) -> Schedule:
        """The learning rate schedule of the run."""
        return learning_rate(self.run)

    @cached_property
    def _fixed_numbers(self) -> Mapping[str, jax.Array]:
        """Hyperparameters other than the learning rate, on the devices."""
        numbers = hyperparameters(self.run.optimizer)
        del numbers["lr"]
        return jax.jit(_same, out_shardings=self._whole)(numbers)

    def numbers(self, step: int) -> dict[str, Any]:
        """Return the hyperparameters for a zero-based step, to be passed as the last argument of `train_step`."""
        return {**self._fixed_numbers, "lr": self.schedule(step)}

    @cached_property
    def abstract_numbers(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of the result of `numbers`."""
        numbers = jax.eval_shape(lambda: hyperparameters(self.run.optimizer))
        return {name: each if name == "lr" else each.update(sharding=self._whole) for name, each in numbers.items()}

    @cached_property
    def _whole(self) -> NamedSharding:
        """Sharding that replicates an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def param_shardings(self) -> Any:
        """Tree with the sharding of every parameter."""
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            self.sharded_loss.param_specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    @cached_property
    def state_shardings(self) -> TrainState:
        """Shardings of the training state."""
        whole, params = self._whole, self.param_shardings
        optimizer = self.make_optimizer(self.run, self.sharded_loss.abstract_params)
        abstract = jax.eval_shape(optimizer.init, self.sharded_loss.abstract_params)
        opt_state = optax.tree.map_params(
            optimizer, lambda _, sharding: sharding, abstract, params, transform_non_params=lambda _: whole
        )
        return TrainState(params, opt_state, whole, whole)

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state, as needed to restore a checkpoint."""
        shapes = jax.eval_shape(self._init, self._seed)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.state_shardings,
        )

    def init(self, params: Any = None) -> TrainState:
        """Return the training state before the first step. Random parameters depend only on the model and the seed.

        Args:
            params: initial parameters, which are donated. None: random parameters.
        """
        return self.init_step(self._seed, params)

    @property
    def _seed(self) -> np.uint32:
        return np.uint32(self.run.trainer.seed)

    @property
    def init_step(self) -> Any:
        """Compiled function `(seed, params or None) -> state`. The parameters are donated."""
        options = options_for_equal_bits(self.mesh.devices.flat[0].platform)
        return self._jit(
            self._init, out_shardings=self.state_shardings, donate_argnums=1, compiler_options=options or None
        )

    def _jit(self, function: Any, **options: Any) -> Any:
        """Return a compiled function, from the shared cache if possible."""
        if function.__name__ not in self.shared_cache:
            self.shared_cache[function.__name__] = jax.jit(function, **options)
        return self.shared_cache[function.__name__]

    def _init(self, seed: Any, params: Any = None) -> TrainState:
        key = jax.random.key(seed)
        if params is None:
            params = init_model(build_model(self.model), jax.random.fold_in(key, 0))
        rng = jax.random.key_data(jax.random.fold_in(key, 1))
        optimizer = self.make_optimizer(self.run, params)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), rng)

    @property
    def train_step(self) -> Any:
        """Compiled function `(state, batch, numbers) -> (state, metrics)`. The old state is donated.

        The metrics are float scalars: `loss` in nats per target token, `grad_norm`, `param_norm` and `lr`.
        """
        return self._jit(self._train_step, donate_argnums=0, out_shardings=(self.state_shardings, None))

    def _train_step(
        self, state: TrainState, batch: Batch, numbers: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, gradients = self.loss_and_gradients(
            state.params, batch, jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        )
        optimizer = self.make_optimizer(self.run, state.params, numbers)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "grad_norm": optax.global_norm(gradients),
            "param_norm": optax.global_norm(params),
            "lr": jnp.asarray(numbers["lr"], jnp.float32),
        }
        return TrainState(params, opt_state, state.step + 1, state.rng), metrics

    def loss_and_gradients(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        """See `ShardedLoss.loss_and_gradients`."""
        return self.sharded_loss.loss_and_gradients(params, batch, key)

    @property
    def eval_step(self) -> Any:
        """Compiled function `(params, batch) -> (sum of the cross-entropy in nats, number of targets)`, over the global
        batch."""
        return self._jit(self.sharded_loss.loss_sum_and_count)


def _same(tree: Any) -> Any:
    return tree


def build_program(run: RunConfig, mesh: Mesh | None = None, make_optimizer: MakeOptimizer = build_optimizer) -> Program:
    """Return the program of a run.

    Args:
        run: the config; `model_class` must be the class itself.
        mesh: mesh of the run's layout. None: a mesh over all devices.
        make_optimizer: function that builds the optimizer, like `optim.build_optimizer`.

    Raises:
        ConfigError: the layout does not match the devices, or names modules that the model does not have.
    """
    mesh = build_mesh(run.parallel, order=run.distributed.device_order) if mesh is None else mesh
    shared_cache = _shared_cache(run, mesh, make_optimizer)
    return Program(run, mesh, build_sharded_loss(run, mesh), make_optimizer, shared_cache)


_latest: dict[Any, dict[str, Any]] = {}
"""Shared cache of the latest program. The key contains everything that must be equal for programs to share the cache.
Earlier entries are removed, to free the memory of their compiled functions."""


def _shared_cache(run: RunConfig, mesh: Mesh, make_optimizer: MakeOptimizer) -> dict[str, Any]:
    key = (run.model.model_class, plan_key(run), mesh, make_optimizer)
    if key not in _latest:
        _latest.clear()
        _latest[key] = {}
    return _latest[key]
