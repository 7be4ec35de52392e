"""Application of a layout to Flax Linen modules: list the parameters, gather parameters on use, and apply remat to
modules by class name.

All functions work with any Linen module, including a user's own, without changes to the module. Each parameter sharded
by FSDP is wrapped in a box (`flax.core.meta.AxisMetadata`), which Linen opens when the owning module reads the
parameter, inside any scan or remat. Each parameter is therefore gathered once per use, by the innermost module.
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
    """Build the module of a `ModelConfig`, in which `model_class` must be a class, not the dotted path of a class.

    The class is called with the keyword `config`, and also with `axes` if the class declares this field. Without the
    field, every tensor-parallel device computes the whole model.
    """
    return model.model_class(config=model.model_config, **({"axes": axes} if knows_axes(model) else {}))


def knows_axes(model: ModelConfig) -> bool:
    """True if the model class declares a field `axes: Axes` and therefore supports tensor parallelism."""
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
    """Return the logits of a language model, `[B, T, V]`. `document_borders_BT` and `train` are passed to the module
    only if its `__call__` accepts them.

    Args:
        module: a language model.
        params: parameters of the module.
        tokens_BT: token ids, `int[B, T]`.
        document_borders_BT: True for the first token of each document, `bool[B, T]`. None: one document per row.
        train: True to apply dropout.
        dropout_key: random key for dropout. None: the RNG stream `dropout` is not available to the module.
    """
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
    """Compute the logits of the next tokens, given the cache of all earlier tokens.

    The `__call__` of the module must accept `capacity` (see `keeps_cache`), and keep the state of the module in the
    Flax collection `cache`.

    Args:
        module: a language model, built without `axes`.
        params: parameters of the module.
        cache: cache returned by the previous call; `{}` in the first call.
        tokens_BT: one or more next tokens, `int[B, T]`.
        document_borders_BT: True for the first token of each document, as in training. None: no document starts.
        capacity: maximum total number of tokens in all calls; must be the same in all calls. This is the size of the
            attention cache; other layers have no limit.

    Returns:
        The logits, `[B, T, V]`, and the cache after these tokens.
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
    """True if the `__call__` of a model class accepts `capacity`, as `continue_model` requires."""
    return "capacity" in inspect.signature(model_class.__call__).parameters


def _accepted(module: nn.Module, document_borders_BT: jax.Array | None, train: bool) -> dict[str, Any]:
    known = inspect.signature(type(module).__call__).parameters
    offered = {"document_borders_BT": document_borders_BT, "train": train}
    return {name: value for name, value in offered.items() if name in known}


def init_model(module: nn.Module, key: jax.Array) -> Any:
    """Return the initial parameters as a tree of global arrays.

    Args:
        module: a model, built without `axes`.
        key: random key.

    Raises:
        ValueError: the module has variables that are not parameters.
    """
    tokens_BT = jnp.zeros((1, module.config.context_length), jnp.int32)  # pyright: ignore[reportAttributeAccessIssue]
    variables = module.init({"params": key}, tokens_BT)
    if extra := sorted(set(variables) - {"params"}):
        raise ValueError(
            f"{type(module).__name__} has variables other than parameters ({', '.join(extra)}), which are not supported"
        )
    return meta.unbox(variables["params"])


def list_parameters(model: ModelConfig) -> list[Parameter]:
    """List all parameters of a model, without allocating memory for them.

    Raises:
        ConfigError: `parallel.remat` or `parallel.fsdp_modules` contains a class name that no module of the model has.
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
    """Return a tree with the `NamedSharding` of each parameter of a model.

    Raises:
        ConfigError: a class name is unknown (see `list_parameters`), or a parameter cannot be sharded (see
            `shard_parameter`).
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
    """Box with the local shard of a parameter, which is all-gathered over the FSDP mesh axis when a module reads it."""

    value: jax.Array
    axis_name: str = struct.field(pytree_node=False)
    axis: int = struct.field(pytree_node=False)
    gather_dtype: str | None = struct.field(pytree_node=False)
    scatter_dtype: str | None = struct.field(pytree_node=False)

    def unbox(self) -> jax.Array:
        """Gather the parameter. Linen calls this method when a module reads the parameter."""
        axis = self.axis + self.value.ndim
        if axis < 0:
            name = f"metadata_params={{nn.PARTITION_NAME: {LAYERS!r}}}"
            raise ValueError(
                f"FSDP has sharded the array axis that nn.scan added. Name this axis: nn.scan(..., {name})"
            )
        return gather_parameter(self.value, self.axis_name, axis, self.gather_dtype, self.scatter_dtype)

    def replace_boxed(self, val: Any) -> Any:
        """Return the same box around another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> _Sharded:
        """Return self: `axis` is counted from the end, so a new leading array axis does not change it."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> _Sharded:
        """Return self, for the same reason as `add_axis`."""
        return self


def box_sharded(params: Any, placements: Sequence[Placement], model: ModelConfig) -> Any:
    """Return the parameter tree, with each parameter sharded by FSDP in a box that gathers the parameter on use.

    Args:
        params: the local shards of the parameters.
        placements: placements of all parameters.
        model: the model config.
    """
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
    """Context manager that applies remat to module calls: modules of the named classes save only their inputs for the
    backward pass, and recompute their activations.

    Args:
        names: class names.
        policy: selects activations that are saved anyway; see `TrainerConfig.remat_policy`. No policy saves gathered
            parameters, because they are not results of matrix products.
        scanned: name of the module that the model scans over. None: no scan. XLA cannot eliminate the recomputation
            inside a scan as a common subexpression; elsewhere, `prevent_cse` is needed.
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
