"""Conversion of xlstm-jax parameter trees, in all their variants, to the parameters of this package.

An xlstm-jax parameter tree depends on the layout used in training. An array that is split by tensor parallelism has an
extra leading axis for the devices, and `sharded` in its path. Dense layers have other names with tensor parallelism,
and collective matmuls have one kernel per step of the ring of devices. FSDP only adds Flax metadata boxes around the
arrays.

Array axes are always counted from the end, because a scanned stack of blocks adds a leading axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm_hydra.configs import LlamaConfig, ModelConfig, mLSTMConfig, mLSTMv1Config
from xlstm_hydra.parallel import ARRAY_AXES, Parameter
from xlstm_hydra.problems import ConfigError, Problem, either

from ._leaves import Shape
from ._parts import NotOurs, Part, all_blocks, config_of, outer_and_block_parameters

_EMBEDDING = "token_embedding.sharded.embedding"


@dataclass(frozen=True)
class _Tree:
    """An xlstm-jax parameter tree."""

    config: Any
    """Config of the model class."""

    devices: int
    """Number of tensor-parallel devices that the model was trained with."""

    leaves: Mapping[str, Shape]
    """Shape of each leaf by path."""

    def ring(self, module: str) -> bool:
        """True if the dense layer at path `module` is a collective matmul."""
        return any(f".{module}.shard_" in path for path in self.leaves)


_How = Callable[[Sequence[Parameter], str, _Tree], Iterator[Part]]
"""Conversion of a module: yields parts, given our parameters, the path of the module in xlstm-jax and the tree."""


@dataclass(frozen=True)
class _Family:
    """Parameter paths of a model family in xlstm-jax."""

    scanned: str
    """Path prefix of a scanned stack of blocks."""

    block: str
    """Path prefix of a separate block, without the number of the block."""

    modules: Mapping[str, tuple[_How, str]]
    """For each of our modules in a block: the conversion of the module, and the path of the module in xlstm-jax."""


def is_xlstm_jax_tree(leaves: Mapping[str, Shape]) -> bool:
    """True if the leaves are those of an xlstm-jax checkpoint."""
    return _EMBEDDING in leaves


def xlstm_jax_parts(model: ModelConfig, leaves: Mapping[str, Shape]) -> list[Part]:
    """Return the mapping from the leaves of an xlstm-jax checkpoint to the parameters of `model`.

    Raises:
        ConfigError: xlstm-jax does not have this model class, or one of the modules in its blocks.
    """
    family = _FAMILIES.get(type(model.model_config))
    if family is None:
        known = either(config.__name__ for config in _FAMILIES)
        text = f"xlstm-jax does not have this model class; expected {known}"
        raise ConfigError([Problem.about(model.class_path(), text)])
    tree = _Tree(config_of(model), leaves.get(_EMBEDDING, (1,))[0], leaves)
    layers = config_of(model).num_blocks
    scanned = any(path.startswith(f"{family.scanned}.") for path in leaves)
    names = family.scanned if scanned else [f"{family.block}{index}" for index in range(layers)]
    outer, block = outer_and_block_parameters(model)
    parts = [part for module, members in _by_module(outer).items() for part in _outer(module, members, tree)]
    groups: dict[tuple[_How, str], list[Parameter]] = {}
    for module, members in _by_module(block).items():
        if module not in family.modules:
            raise ConfigError([Problem.about(model.class_path(), f"xlstm-jax blocks have no module {module}")])
        groups.setdefault(family.modules[module], []).extend(members)
    for (how, theirs), members in groups.items():
        parts += [all_blocks(part, names, layers) for part in how(members, theirs, tree)]
    return parts


def _by_module(parameters: Sequence[Parameter]) -> dict[str, list[Parameter]]:
    modules: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        modules.setdefault(_module(parameter), []).append(parameter)
    return modules


def _outer(module: str, members: Sequence[Parameter], tree: _Tree) -> Iterator[Part]:
    if module == "token_embedding":
        return _wrapped(members, f"{module}.sharded", tree)
    return _plain(members, module, tree)  # the head is only sharded by FSDP, which does not change the tree


def _module(parameter: Parameter) -> str:
    return parameter.path.rpartition(".")[0]


def _leaf(parameter: Parameter) -> str:
    return parameter.path.rpartition(".")[2]


# Conversions of individual modules.


def _plain(parameters: Sequence[Parameter], theirs: str, tree: _Tree) -> Iterator[Part]:
    """Yield parts for arrays that need no conversion."""
    del tree
    for parameter in parameters:
        yield Part((parameter.path,), {f"{theirs}.{_leaf(parameter)}": parameter.shape})


def _wrapped(parameters: Sequence[Parameter], theirs: str, tree: _Tree) -> Iterator[Part]:
    """Yield parts for arrays with a leading axis for the devices. Each device has a shard, or a copy if no axis is
    split."""
    for parameter in parameters:
        path, local, axis = f"{theirs}.{_leaf(parameter)}", _local(parameter, tree), _split_axis(parameter)

        def join(x: np.ndarray, axes=len(local), axis=axis) -> Sequence[np.ndarray]:
            shares = _shares(x, axes)
            return [_one_of_equals(shares) if axis is None else np.concatenate(shares, axis)]

        yield Part((parameter.path,), {path: (tree.devices, *local)}, join)


def _split_axis(parameter: Parameter) -> int | None:
    """Return the array axis that tensor parallelism splits, counted from the end; None if no axis is split."""
    for axis, name in enumerate(parameter.names):
        if name is not None and ARRAY_AXES[name] == "model_axis_name":
            return axis - len(parameter.names)
    return None


def _local(parameter: Parameter, tree: _Tree) -> Shape:
    """Return the shape of one device's shard."""
    shape, axis = list(parameter.shape), _split_axis(parameter)
    if axis is not None:
        shape[axis] //= tree.devices
    return tuple(shape)


def _shares(x: np.ndarray, local_axes: int) -> list[np.ndarray]:
    """Split an array along the device axis, which is followed by `local_axes` other axes."""
    return list(np.moveaxis(x, -local_axes - 1, 0))


def _one_of_equals(shares: Sequence[np.ndarray]) -> np.ndarray:
    if any((share != shares[0]).any() for share in shares):
        text = f"has different values on the {len(shares)} tensor-parallel devices that the model was trained on"
        raise NotOurs(f"{text}, but in this model, all heads share one array")
    return shares[0]


def _dense(parameters: Sequence[Parameter], theirs: str, tree: _Tree) -> Iterator[Part]:
    """Yield parts for a dense layer with a split output axis."""
    if tree.ring(theirs):
        return (_ring([parameter], theirs, tree, _columns_up) for parameter in parameters)
    if tree.devices == 1:
        return _plain(parameters, f"{theirs}.Dense_0", tree)
    return _wrapped(parameters, f"{theirs}.module.sharded", tree)


def _down(parameters: Sequence[Parameter], theirs: str, tree: _Tree) -> Iterator[Part]:
    """Yield parts for a dense layer with a split input axis. Each device has a full-width bias; the biases are
    summed."""
    for parameter in parameters:
        if tree.ring(theirs):
            yield _ring([parameter], theirs, tree, _columns_down)
        elif _leaf(parameter) == "bias" and tree.devices > 1:
            leaves = {f"{theirs}.module.sharded.bias": (tree.devices, *parameter.shape)}
            yield Part((parameter.path,), leaves, lambda x: [x.sum(-2)])
        else:
            yield from _dense([parameter], theirs, tree)


def _up(parameters: Sequence[Parameter], theirs: str, tree: _Tree) -> Iterator[Part]:
    """Yield parts for the up-projections to the output gate and the cell: two dense layers, or one collective
    matmul."""
    ring = f"{theirs}.proj_up"
    if not tree.ring(ring):
        for module, members in _by_module(parameters).items():
            yield from _dense(members, f"{theirs}.{module.rpartition('.')[2]}", tree)
        return
    for leaf in dict.fromkeys(map(_leaf, parameters)):
        both = {
            _module(parameter).rpartition("_")[2]: parameter for parameter in parameters if _leaf(parameter) == leaf
        }
        yield _ring([both["z"], both["mlstm"]], ring, tree, _columns_up)


def _gate(parameters: Sequence[Parameter], theirs: str, tree: _Tree) -> Iterator[Part]:
    """Yield parts for a gate. xlstm-jax concatenates the kernels of the gate's inputs (q, k, v, x) into one kernel."""
    by_name = {_leaf(parameter): parameter for parameter in parameters}
    kernels = [by_name.pop(name) for name in ("q_kernel", "k_kernel", "v_kernel", "x_kernel") if name in by_name]
    yield from _wrapped([*by_name.values()], theirs, tree)
    if kernels:
        ends = np.cumsum([kernel.shape[0] for kernel in kernels])
        shape = (1, int(ends[-1]), kernels[0].shape[1])  # with tensor parallelism, gates only read their own heads
        yield Part(
            tuple(kernel.path for kernel in kernels),
            {f"{theirs}.kernel": shape},
            lambda x: np.split(x.squeeze(-3), ends[:-1], -2),
        )


def _attention(parameters: Sequence[Parameter], theirs: str, tree: _Tree) -> Iterator[Part]:
    """Yield parts for dense layers. xlstm-jax has two array axes for heads and head width, which are one axis here."""
    config = tree.config
    for parameter in parameters:
        sizes = zip(parameter.names, parameter.shape, strict=True)
        shape = sum(((config.num_heads(), config.head_dim) if name == "heads" else (size,) for name, size in sizes), ())

        def join(x: np.ndarray, ours=parameter.shape, axes=len(shape)) -> Sequence[np.ndarray]:
            return [x.reshape(*x.shape[: x.ndim - axes], *ours)]

        yield Part((parameter.path,), {f"{theirs}.{_leaf(parameter)}": shape}, join)


# Collective matmuls, which have one kernel per step of the ring of devices.

_Shards = Mapping[tuple[int, int], np.ndarray]
"""Kernel or bias by (step of the ring, device)."""
_Columns = Callable[[_Shards, int, Callable[[list[np.ndarray]], np.ndarray]], list[np.ndarray]]
"""Function of the shards, the number of devices, and a function that joins the shards of one device's output columns.
Returns the output columns of each device."""


def _ring(parameters: Sequence[Parameter], theirs: str, tree: _Tree, columns: _Columns) -> Part:
    """Return the part of a collective matmul that computes the outputs of all `parameters` together."""
    devices, leaf = tree.devices, _leaf(parameters[0])
    sharded = "sharded." if devices > 1 else ""
    steps = {f"{theirs}.shard_{step}.{sharded}{leaf}": step for step in range(devices)}
    if leaf == "bias":  # all steps add to the same output, so some steps have no bias
        steps = {path: step for path, step in steps.items() if path in tree.leaves} or dict([*steps.items()][:1])
    widths = [parameter.shape[-1] // devices for parameter in parameters]
    local = (*(size // devices for size in parameters[0].shape[:-1]), sum(widths))

    def rows(shards: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(shards, -2) if leaf == "kernel" else np.sum(shards, 0)

    def join(*arrays: np.ndarray) -> list[np.ndarray]:
        by_device = [_shares(x, len(local)) if sharded else [x] for x in arrays]
        pairs = zip(steps.values(), by_device, strict=True)
        shards = {(step, device): share for step, shares in pairs for device, share in enumerate(shares)}
        parts = [np.split(column, np.cumsum(widths)[:-1], -1) for column in columns(shards, devices, rows)]
        return [np.concatenate(part, -1) for part in zip(*parts, strict=True)]

    shape = (devices, *local) if sharded else local
    return Part(tuple(parameter.path for parameter in parameters), dict.fromkeys(steps, shape), join)


def _columns_up(shards, devices, rows) -> list[np.ndarray]:
    """Join the shards of an up-projection. At step j, device d multiplies the input shard of device d - j (modulo the
    number of devices)."""
    orders = [[((d - source) % devices, d) for source in range(devices)] for d in range(devices)]
    return [rows([shards[key] for key in order if key in shards]) for order in orders]


def _columns_down(shards, devices, rows) -> list[np.ndarray]:
    """Join the shards of a down-projection. The product of device d at step j is passed on `devices` - 1 - j times
    around the ring and added to other products: the first half of its columns upwards, from device d to d + 1, and the
    second half downwards."""

    def column(end: int, way: int) -> np.ndarray:
        order = [((way * (d - end) - 1) % devices, d) for d in range(devices)]
        return rows([_half(shards[key], way) for key in order if key in shards])

    return [np.concatenate([column(end, 1), column(end, -1)], -1) for end in range(devices)]


def _half(x: np.ndarray, way: int) -> np.ndarray:
    """Return the columns of a shard that are passed upwards (`way` 1) or downwards (`way` -1). If the number of columns
    is odd, the middle column is passed downwards."""
    middle = x.shape[-1] // 2
    return x[..., :middle] if way == 1 else x[..., middle:]


# Modules of each model family.

_RES, _FFN = "xlstm_res_block", "ffn_res_block"
_LAYER = f"{_RES}.xlstm"
_INNER = f"{_LAYER}.inner_layer.sharded"


def _same(how: _How, *modules: str) -> dict[str, tuple[_How, str]]:
    """Map modules that have the same path in xlstm-jax."""
    return {module: (how, module) for module in modules}


def _below(how: _How, theirs: str, *names: str) -> dict[str, tuple[_How, str]]:
    """Map modules of our mixing layer that belong to the module `theirs` in xlstm-jax."""
    return {f"{_LAYER}.{name}": (how, f"{theirs}.{name}") for name in names}


def _norms(*modules: str) -> dict[str, tuple[_How, str]]:
    return {module: (_wrapped, f"{module}.sharded") for module in modules}


_FEED_FORWARD: dict[str, tuple[_How, str]] = {
    **_norms(f"{_FFN}.ffn_norm", f"{_FFN}.ffn_post_norm"),
    **_same(_dense, f"{_FFN}.ffn.proj_up", f"{_FFN}.ffn.proj_up_gate"),
    **_same(_down, f"{_FFN}.ffn.proj_down"),
}
_V0: dict[str, tuple[_How, str]] = {
    **_norms(f"{_RES}.xlstm_norm", f"{_RES}.xlstm_post_norm"),
    f"{_LAYER}.proj_up_mlstm": (_up, _LAYER),
    f"{_LAYER}.proj_up_z": (_up, _LAYER),
    _LAYER: (_wrapped, _INNER),  # the skip
    f"{_LAYER}.conv1d": (_wrapped, f"{_INNER}.conv1d.conv"),
    **_below(_wrapped, _INNER, "q_proj", "k_proj", "v_proj", "qk_proj", "x_mlstm_conv_scaling"),
    **_below(_gate, f"{_INNER}.mlstm_cell", "igate", "fgate"),
    **_below(_wrapped, f"{_INNER}.mlstm_cell", "q_norm", "k_norm", "outnorm"),
    **_same(_down, f"{_LAYER}.proj_down"),
    **_FEED_FORWARD,
}
_V1: dict[str, tuple[_How, str]] = {
    **_norms(f"{_RES}.xlstm_norm", f"{_RES}.xlstm_post_norm", f"{_LAYER}.outnorm"),
    **_below(_dense, _LAYER, "dense_q", "dense_k", "dense_v", "dense_o", "igate", "fgate"),
    **_below(_plain, _LAYER, "q_norm", "k_norm"),
    **_same(_down, f"{_LAYER}.proj_down"),
    **_FEED_FORWARD,
}
_LLAMA: dict[str, tuple[_How, str]] = {
    "attn.attn_norm": (_plain, "attn.pre_norm"),
    **_same(_attention, *(f"attn.attn.dense_{name}" for name in ("q", "k", "v", "out"))),
    **_same(_plain, "attn.attn.q_norm", "attn.attn.k_norm"),
    "ffn.ffn_norm": (_plain, "ffn.pre_norm"),
    **_same(_plain, *(f"ffn.ffn.proj_{name}" for name in ("up", "up_gate", "down"))),
}
_XLSTM_STACK = "xlstm_block_stack.blocks"
_FAMILIES = {
    mLSTMConfig: _Family(f"{_XLSTM_STACK}.block", f"{_XLSTM_STACK}.", _V0),
    mLSTMv1Config: _Family(f"{_XLSTM_STACK}.block", f"{_XLSTM_STACK}.", _V1),
    LlamaConfig: _Family("block_stack.block", "block_stack.block_", _LLAMA),
}
