"""What connects Flax Linen to the layout: which parameters there are, gathering them where they are used, remat by
name.

It works on any Linen module, ours or a user's, without a line in the module: a parameter sharded by FSDP is put in a
box that Linen opens at the moment the owning module reads it, inside whatever scan or remat the module runs in, and
remat is wrapped around calls by class name. So each parameter is gathered once per use, by the innermost module,
inside the remat.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct, traverse_util
from flax.core import meta
from jax.sharding import Mesh, NamedSharding

from xlstm_hydra.configs import ModelConfig
from xlstm_hydra.parallel import LAYERS, Axes, Parameter, Placement, gather_parameter, shard_parameter
from xlstm_hydra.problems import ConfigError

from ._inputs import CACHE


def build_model(model: ModelConfig, axes: Axes = Axes()) -> nn.Module:
    """The module of a `ModelConfig` whose `model_class` is a class.

    It is called with `config`, and with `axes` if the class declares a field of that name. A class that does not is
    computed whole on every tensor-parallel device.
    """
    return model.model_class(config=model.model_config, **({"axes": axes} if knows_axes(model) else {}))


def knows_axes(model: ModelConfig) -> bool:
    """Whether the model class declares a field `axes: Axes`, and so takes part in tensor parallelism."""
    field = getattr(model.model_class, "__dataclass_fields__", {}).get("axes")
    return field is not None and (field.type is Axes or str(field.type).rpartition(".")[2] == "Axes")


def apply_model(
    module: nn.Module,
    params: Any,
    tokens_BT: jax.Array,
    document_borders_BT: jax.Array | None = None,
    *,
    train: bool = False,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Logits of a module, which is given `document_borders_BT` and `train` only if its call takes them."""
    logits: Any = module.apply(
        {"params": params},
        tokens_BT,
        rngs={} if dropout_key is None else {"dropout": dropout_key},
        **_accepted(module, document_borders_BT, train),
    )
    return logits


def continue_model(
    module: nn.Module,
    params: Any,
    cache: Any,
    tokens_BT: jax.Array,
    document_borders_BT: jax.Array | None = None,
    *,
    capacity: int,
) -> tuple[jax.Array, Any]:
    """Logits of tokens after those that have led to a cache, and the cache after them.

    The call of the module must take `capacity`, and keep what it needs in the collection `cache`; see `keeps_cache`.

    Args:
        module: a language model, built without `axes`.
        params: its parameters.
        cache: what this function gave for the tokens before; `{}` at the beginning.
        tokens_BT: the tokens that follow, one or more.
        document_borders_BT: true where a document begins, as in training. None: nowhere.
        capacity: the same in all calls: how many tokens there may be in all. Only attention is limited by it.
    """
    logits, changed = module.apply(
        {"params": params, CACHE: cache},
        tokens_BT,
        capacity=capacity,
        mutable=[CACHE],
        **_accepted(module, document_borders_BT, train=False),
    )
    return logits, changed[CACHE]


def keeps_cache(model_class: type) -> bool:
    """Whether the call of a model class takes `capacity`, so that it can continue tokens."""
    return "capacity" in inspect.signature(model_class.__call__).parameters


def _accepted(module: nn.Module, document_borders_BT: jax.Array | None, train: bool) -> dict[str, Any]:
    known = inspect.signature(type(module).__call__).parameters
    offered = {"document_borders_BT": document_borders_BT, "train": train}
    return {name: value for name, value in offered.items() if name in known}


def init_model(module: nn.Module, key: jax.Array) -> Any:
    """Initial parameters, as a tree of arrays of natural shape. `module` must have been built without `axes`."""
    tokens_BT = jnp.zeros((1, module.config.context_length), jnp.int32)  # pyright: ignore[reportAttributeAccessIssue]
    variables = module.init({"params": key}, tokens_BT)
    if extra := sorted(set(variables) - {"params"}):
        raise ValueError(
            f"{type(module).__name__} has variables besides its parameters ({', '.join(extra)}); none are kept"
        )
    return meta.unbox(variables["params"])


def list_parameters(model: ModelConfig) -> list[Parameter]:
    """Every parameter of a model, without allocating it.

    Raises:
        ConfigError: `remat` or `fsdp_modules` names a class that is no module of the model.
    """
    module = build_model(model)
    classes: dict[tuple[str, ...], str] = {}

    def note(next_call, args, kwargs, context):
        classes.setdefault(context.module.path, type(context.module).__name__)
        return next_call(*args, **kwargs)

    tokens_BT = jax.ShapeDtypeStruct((1, model.model_config.context_length), jnp.int32)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    with nn.intercept_methods(note):
        boxed = jax.eval_shape(module.init, jax.random.key(0), tokens_BT)["params"]
    inner = tuple(dict.fromkeys(name for path, name in classes.items() if path))
    if problems := list(model.parallel.module_name_rules(inner)):
        raise ConfigError(problems)
    flat = traverse_util.flatten_dict(boxed, is_leaf=lambda _, x: isinstance(x, meta.AxisMetadata))
    return [_parameter(path, leaf, classes) for path, leaf in flat.items()]


def param_shardings(model: ModelConfig, mesh: Mesh) -> Any:
    """Where the layout of a model puts each parameter on a mesh, as a tree.

    Raises:
        ConfigError: as `list_parameters`.
    """
    placements = [shard_parameter(parameter, model.parallel, mesh.shape) for parameter in list_parameters(model)]
    flat = {placement.parameter.path: NamedSharding(mesh, placement.spec) for placement in placements}
    return traverse_util.unflatten_dict(flat, sep=".")


def _parameter(path: tuple[str, ...], leaf: Any, classes: dict[tuple[str, ...], str]) -> Parameter:
    value = meta.unbox(leaf)
    names = leaf.names if isinstance(leaf, nn.Partitioned) else (None,) * len(value.shape)
    owners = tuple(classes[path[:depth]] for depth in range(1, len(path)) if path[:depth] in classes)
    return Parameter(".".join(path), value.shape, value.dtype.name, value.dtype.itemsize, tuple(names), owners)


class _Sharded(struct.PyTreeNode, meta.AxisMetadata):
    """A parameter that is gathered over the FSDP mesh axis when a module reads it."""

    value: jax.Array
    axis_name: str = struct.field(pytree_node=False)
    axis: int = struct.field(pytree_node=False)
    gather_dtype: str | None = struct.field(pytree_node=False)
    scatter_dtype: str | None = struct.field(pytree_node=False)

    def unbox(self) -> jax.Array:
        """The whole parameter."""
        axis = self.axis + self.value.ndim
        if axis < 0:
            name = f"metadata_params={{nn.PARTITION_NAME: {LAYERS!r}}}"
            raise ValueError(f"the array axis of a scan was sharded; name it: nn.scan(..., {name})")
        return gather_parameter(self.value, self.axis_name, axis, self.gather_dtype, self.scatter_dtype)

    def replace_boxed(self, val: Any) -> Any:
        """The same box around another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> _Sharded:
        """Axes are counted from the end, so a stacking axis in front changes nothing."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> _Sharded:
        """As `add_axis`."""
        return self


def box_sharded(params: Any, placements: Sequence[Placement], model: ModelConfig) -> Any:
    """The parameter tree with the parameters that FSDP shards in boxes that gather them on use."""
    parallel = model.parallel
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep=".")
    for placement in placements:
        if placement.fsdp_axis is not None:
            path = placement.parameter.path
            flat[path] = _Sharded(
                flat[path],
                parallel.fsdp_axis_name,
                placement.fsdp_axis,
                parallel.fsdp_gather_dtype,
                parallel.fsdp_grad_scatter_dtype,
            )
    return traverse_util.unflatten_dict(flat, sep=".")


_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@contextlib.contextmanager
def remat_by_name(names: Sequence[str], policy: str = "nothing", *, scanned: str | None = None) -> Iterator[None]:
    """Recompute, in the backward pass, the activations inside every module whose class is named.

    Args:
        names: class names.
        policy: what is kept all the same; see `TrainerConfig.remat_policy`. A gathered parameter is no product, so
            none of them keeps it.
        scanned: name of the module that the model scans over, if any. A scan keeps the compiler from undoing the
            recomputation by itself; elsewhere it must be told to.
    """
    running: set[tuple[str, ...]] = set()

    def wrap(next_call, args, kwargs, context):
        module = context.module
        chosen = context.method_name == "__call__" and type(module).__name__ in names
        if not chosen or module.path in running:
            return next_call(*args, **kwargs)
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, jax.Array) for leaf in leaves]

        def call(module: nn.Module, *arrays: jax.Array) -> Any:
            remaining = iter(arrays)
            filled = [next(remaining) if is_array else leaf for leaf, is_array in zip(leaves, traced, strict=True)]
            inner_args, inner_kwargs = jax.tree.unflatten(structure, filled)
            running.add(module.path)
            try:
                return module(*inner_args, **inner_kwargs)
            finally:
                running.discard(module.path)

        arrays = [leaf for leaf, is_array in zip(leaves, traced, strict=True) if is_array]
        return nn.remat(call, policy=_POLICIES[policy], prevent_cse=module.path[:1] != (scanned,))(module, *arrays)

    with nn.intercept_methods(wrap) if names else contextlib.nullcontext():
        yield
