"""A run as compiled functions on a mesh: initialise, step, validate.

Loss and gradients come from `ShardedLoss`, inside `shard_map`; the optimizer runs outside, on global arrays. The
seed and the numbers of the optimizer are arguments of what is compiled: jobs of a sweep that differ in them alone share
their programs.
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
"""`run, params, numbers (None: the run's) -> optimizer`."""


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


@dataclass(frozen=True)
class Program:
    """What is compiled for a run. `build_program` makes one."""

    run: RunConfig
    mesh: Mesh
    sharded_loss: ShardedLoss
    make_optimizer: MakeOptimizer
    shared_cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What it shares with the programs of runs that have other numbers alone: compiled functions, and the plan."""

    @property
    def model(self) -> ModelConfig:
        """The model, whose `model_class` is a class."""
        return self.run.model

    @property
    def axes(self) -> Axes:
        """The mesh axes as the model sees them."""
        return self.sharded_loss.axes

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where every parameter lives."""
        return self.sharded_loss.placements

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """How a batch is split."""
        return NamedSharding(self.mesh, self.sharded_loss.batch_spec)

    @cached_property
    def batch_rows(self) -> list[int]:
        """The rows of a batch that the devices of this process need. Other processes may need the same ones."""
        batch = self.run.trainer.batch_size
        shards = self.batch_sharding.addressable_devices_indices_map((batch,)).values()
        return sorted({row for shard in shards if shard is not None for row in range(batch)[shard[0]]})

    def put(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """This process's `batch_rows` of a batch, as parts of global arrays."""
        size, here = self.run.trainer.batch_size, {row: index for index, row in enumerate(self.batch_rows)}

        def array(local: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                return local[[here[row] for row in range(size)[index[0]]]]

            return jax.make_array_from_callback((size, *local.shape[1:]), self.batch_sharding, part)

        return {name: array(local) for name, local in batch.items()}

    @cached_property
    def abstract_batch(self) -> Batch:
        """Shapes, types and shardings of a batch."""
        return {
            key: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=self.batch_sharding)
            for key, part in self.sharded_loss.abstract_batch.items()
        }

    @cached_property
    def schedule(self) -> Schedule:
        """The learning rate of each step, from step 0."""
        return learning_rate(self.run)

    @cached_property
    def _fixed_numbers(self) -> Mapping[str, jax.Array]:
        """The numbers of the optimizer that no step changes, on the devices."""
        numbers = hyperparameters(self.run.optimizer)
        del numbers["lr"]
        return jax.jit(_same, out_shardings=self._whole)(numbers)

    def numbers(self, step: int) -> dict[str, Any]:
        """What the optimizer works with in a step, from step 0: the last argument of `train_step`."""
        return {**self._fixed_numbers, "lr": self.schedule(step)}

    @cached_property
    def abstract_numbers(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Types of what the optimizer works with, and where it lives."""
        numbers = jax.eval_shape(lambda: hyperparameters(self.run.optimizer))
        return {name: each if name == "lr" else each.update(sharding=self._whole) for name, each in numbers.items()}

    @cached_property
    def _whole(self) -> NamedSharding:
        """That every device has all of an array."""
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def param_shardings(self) -> Any:
        """Where every parameter lives, as a tree."""
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            self.sharded_loss.param_specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    @cached_property
    def state_shardings(self) -> TrainState:
        """Where every array of the state lives."""
        whole, params = self._whole, self.param_shardings
        optimizer = self.make_optimizer(self.run, self.sharded_loss.abstract_params)
        abstract = jax.eval_shape(optimizer.init, self.sharded_loss.abstract_params)
        opt_state = optax.tree.map_params(
            optimizer, lambda _, sharding: sharding, abstract, params, transform_non_params=lambda _: whole
        )
        return TrainState(params, opt_state, whole, whole)

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state: what a checkpoint is restored into."""
        shapes = jax.eval_shape(self._init, self._seed)
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
        return self.init_step(self._seed, params)

    @property
    def _seed(self) -> np.uint32:
        return np.uint32(self.run.trainer.seed)

    @property
    def init_step(self) -> Any:
        """`seed, parameters or None -> state`, compiled; the parameters are given up."""
        options = options_for_equal_bits(self.mesh.devices.flat[0].platform)
        return self._jit(
            self._init, out_shardings=self.state_shardings, donate_argnums=1, compiler_options=options or None
        )

    def _jit(self, function: Any, **options: Any) -> Any:
        """Compile a function, unless a program that has it in common has done so."""
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
        """`state, batch, numbers -> state, metrics`, compiled; the old state is given up."""
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
        """As `ShardedLoss.loss_and_gradients`."""
        return self.sharded_loss.loss_and_gradients(params, batch, key)

    @property
    def eval_step(self) -> Any:
        """`params, batch -> sum of the cross-entropy, number of targets`, over the global batch, compiled."""
        return self._jit(self.sharded_loss.loss_sum_and_count)


def _same(tree: Any) -> Any:
    return tree


def build_program(run: RunConfig, mesh: Mesh | None = None, make_optimizer: MakeOptimizer = build_optimizer) -> Program:
    """Return the program of a run.

    Args:
        run: the config, whose `model_class` is a class.
        mesh: of its layout. None: over all devices.
        make_optimizer: makes the optimizer of the run for a parameter tree, as `optim.build_optimizer` does.

    Raises:
        ConfigError: the layout does not fit the devices, or names modules that the model does not have.
    """
    mesh = build_mesh(run.parallel, order=run.distributed.device_order) if mesh is None else mesh
    shared_cache = _shared_cache(run, mesh, make_optimizer)
    return Program(run, mesh, build_sharded_loss(run, mesh), make_optimizer, shared_cache)


_latest: dict[Any, dict[str, Any]] = {}
"""What the latest program has in common with others, under what they must have the same. An earlier one is given up,
and the memory of its compiled functions with it."""


def _shared_cache(run: RunConfig, mesh: Mesh, make_optimizer: MakeOptimizer) -> dict[str, Any]:
    key = (run.model.model_class, plan_key(run), mesh, make_optimizer)
    if key not in _latest:
        _latest.clear()
        _latest[key] = {}
    return _latest[key]
