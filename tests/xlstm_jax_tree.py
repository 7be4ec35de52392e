"""Conversion of our parameters to the trees that xlstm-jax writes, as described in MODEL_SPEC.md: the inverse of the
package's conversion, and independent of it. Also a simulated disk."""

import numpy as np
from untrained import shapes_of

from xlstm_hydra import checkpoint

RES, FFN = "xlstm_res_block", "ffn_res_block"
INNER = "xlstm.inner_layer.sharded"


def write(params, config, *, scan=True, tp=1, ring=False, boxed=False):
    """A tree of xlstm-jax by path.

    Args:
        params: our parameters by path, of a model with `scan_blocks`.
        config: config of the model.
        scan: write scanned blocks.
        tp: number of tensor-parallel devices.
        ring: use collective matmuls (`tp_async_dense`).
        boxed: put every array in a box, as with FSDP. Arrays split by tensor parallelism are always in boxes.
    """
    family = {"mLSTMConfig": v0, "mLSTMv1Config": v1, "LlamaConfig": llama}[type(config).__name__]
    blocks = [
        family({path[7:]: array[i] for path, array in params.items() if path.startswith("blocks.")}, config, tp, ring)
        for i in range(config.num_blocks)
    ]
    stem, name = (
        ("block_stack.block", "block_stack.block_")
        if family is llama
        else (
            "xlstm_block_stack.blocks.block",
            "xlstm_block_stack.blocks.",
        )
    )
    tree = {"token_embedding.sharded.embedding": over(params["token_embedding.embedding"], 1, tp)}
    tree |= {path: array for path, array in params.items() if path.startswith("lm_head")}
    if scan:
        tree |= {f"{stem}.{path}": np.stack([block[path] for block in blocks]) for path in blocks[0]}
    else:
        tree |= {f"{name}{i}.{path}": array for i, block in enumerate(blocks) for path, array in block.items()}
    return {f"{path}.value" if boxed or ".sharded" in path else path: array for path, array in tree.items()}


def over(array, axis, tp):
    """Add a leading axis for the devices, each with a shard of array axis `axis`."""
    return np.stack(np.split(array, tp, axis))


def dense(block, name, tp, tree, path):
    """A layer with a split output."""
    for leaf, axis in (("kernel", 1), ("bias", 0)):
        if f"{name}.{leaf}" in block:
            array = block[f"{name}.{leaf}"]
            whole, split = f"{path}.Dense_0.{leaf}", f"{path}.module.sharded.{leaf}"
            tree.update({whole: array} if tp == 1 else {split: over(array, axis, tp)})


def dense_down(block, name, tp, tree, path):
    """A layer with a split input. The biases of all devices are summed."""
    if tp == 1:
        return dense(block, name, tp, tree, path)
    tree[f"{path}.module.sharded.kernel"] = over(block[f"{name}.kernel"], 0, tp)
    if f"{name}.bias" in block:
        bias = block[f"{name}.bias"]
        tree[f"{path}.module.sharded.bias"] = np.stack([bias / 4, *[bias * 0.75 / (tp - 1)] * (tp - 1)])


def copy(block, ours, tree, theirs, axis, tp):
    """Arrays with a leading axis for the devices. `axis` None: equal on all devices."""
    if ours in block:
        tree[theirs] = np.stack([block[ours]] * tp) if axis is None else over(block[ours], axis, tp)


def norms(block, tree, tp, part, *names):
    for name in names:
        copy(block, f"{part}.{name}.scale", tree, f"{part}.{name}.sharded.scale", 0, tp)


def v0(block, config, tp, ring):
    tree, layer = {}, f"{RES}.xlstm"
    norms(block, tree, tp, RES, "xlstm_norm", "xlstm_post_norm")
    feed_forward(block, config, tp, ring, tree)
    if ring:
        put_up_ring(block, tree, tp, layer, "proj_up", "proj_up_z", "proj_up_mlstm")
        put_down_ring(block, tree, tp, layer)
    else:
        dense(block, f"{layer}.proj_up_mlstm", tp, tree, f"{layer}.proj_up_mlstm")
        dense(block, f"{layer}.proj_up_z", tp, tree, f"{layer}.proj_up_z")
        dense_down(block, f"{layer}.proj_down", tp, tree, f"{layer}.proj_down")
    inner = f"{RES}.{INNER}"
    copy(block, f"{layer}.conv1d.kernel", tree, f"{inner}.conv1d.conv.kernel", 2, tp)
    copy(block, f"{layer}.conv1d.bias", tree, f"{inner}.conv1d.conv.bias", 0, tp)
    for name in ("q_proj", "k_proj", "v_proj", "x_mlstm_conv_scaling"):
        copy(block, f"{layer}.{name}.kernel", tree, f"{inner}.{name}.kernel", 0, tp)
        copy(block, f"{layer}.{name}.bias", tree, f"{inner}.{name}.bias", 0, tp)
    copy(block, f"{layer}.qk_proj.kernel", tree, f"{inner}.qk_proj.kernel", 1, tp)
    copy(block, f"{layer}.qk_proj.bias", tree, f"{inner}.qk_proj.bias", 1, tp)
    copy(block, f"{layer}.learnable_skip", tree, f"{inner}.learnable_skip", 0, tp)
    for name in ("q_norm", "k_norm"):
        copy(block, f"{layer}.{name}.scale", tree, f"{inner}.mlstm_cell.{name}.scale", None, tp)
    copy(block, f"{layer}.outnorm.scale", tree, f"{inner}.mlstm_cell.outnorm.scale", 0, tp)
    for gate in ("igate", "fgate"):
        ours, theirs = f"{layer}.{gate}", f"{inner}.mlstm_cell.{gate}"
        copy(block, f"{ours}.bias", tree, f"{theirs}.bias", 0, tp)
        if config.gate_linear_headwise:
            copy(block, f"{ours}.kernel", tree, f"{theirs}.kernel", 0, tp)
        else:
            inputs = "qkv" if config.gate_input == "qkv" else "x"
            tree[f"{theirs}.kernel"] = np.concatenate([block[f"{ours}.{name}_kernel"] for name in inputs])[None]
    return tree


def feed_forward(block, config, tp, ring, tree):
    """With a ring, only the gated layer uses dense layers for the up-projections."""
    if config.ff_type is None:
        return
    norms(block, tree, tp, FFN, "ffn_norm", "ffn_post_norm")
    ffn = f"{FFN}.ffn"
    if ring and config.ff_type == "ffn":
        put_up_ring(block, tree, tp, ffn, "proj_up", "proj_up")
    else:
        for name in ("proj_up", "proj_up_gate"):
            dense(block, f"{ffn}.{name}", tp, tree, f"{ffn}.{name}")
    if ring:
        put_down_ring(block, tree, tp, ffn)
    else:
        dense_down(block, f"{ffn}.proj_down", tp, tree, f"{ffn}.proj_down")


def put_up_ring(block, tree, tp, module, theirs, *ours):
    """Split `ours` into the kernels `theirs`.shard_j. On device d, the kernel multiplies the features of device d - j
    and computes the shards of all of `ours` side by side."""
    for j in range(tp):
        devices = []
        for d in range(tp):
            rows = (d - j) % tp
            kernels = [block[f"{module}.{name}.kernel"] for name in ours]
            devices.append(np.concatenate([np.split(np.split(kernel, tp)[rows], tp, 1)[d] for kernel in kernels], 1))
        put_ring(tree, f"{module}.{theirs}", j, "kernel", devices)
    if f"{module}.{ours[0]}.bias" in block:
        biases = [np.split(block[f"{module}.{name}.bias"], tp) for name in ours]
        put_ring(tree, f"{module}.{theirs}", 0, "bias", [np.concatenate(pair) for pair in zip(*biases, strict=True)])


def put_down_ring(block, tree, tp, module):
    """Split `proj_down` into shards. The first half of the features computed by shard_j on device d arrives on device
    d + tp - 1 - j; the second half, sent in the other direction, arrives on device d - (tp - 1 - j)."""

    def halves(shares, d, j):
        up, down = (shares[(d + way * (tp - 1 - j)) % tp] for way in (1, -1))
        middle = up.shape[-1] // 2
        return np.concatenate([up[..., :middle], down[..., middle:]], -1)

    kernel = block[f"{module}.proj_down.kernel"]
    for j in range(tp):
        devices = [halves(np.split(np.split(kernel, tp)[d], tp, 1), d, j) for d in range(tp)]
        put_ring(tree, f"{module}.proj_down", j, "kernel", devices)
    if f"{module}.proj_down.bias" in block:
        shares = np.split(block[f"{module}.proj_down.bias"], tp)
        put_ring(tree, f"{module}.proj_down", 0, "bias", [halves(shares, d, 0) for d in range(tp)])


def put_ring(tree, path, j, leaf, devices):
    if len(devices) == 1:
        tree[f"{path}.shard_{j}.{leaf}"] = devices[0]
    else:
        tree[f"{path}.shard_{j}.sharded.{leaf}"] = np.stack(devices)


def v1(block, config, tp, ring):
    assert not ring
    tree, layer = {}, f"{RES}.xlstm"
    norms(block, tree, tp, RES, "xlstm_norm", "xlstm_post_norm")
    feed_forward(block, config, tp, ring, tree)
    for name in ("dense_q", "dense_k", "dense_v", "dense_o", "igate", "fgate"):
        dense(block, f"{layer}.{name}", tp, tree, f"{layer}.{name}")
    for name in ("q_norm", "k_norm"):
        if f"{layer}.{name}.scale" in block:
            tree[f"{layer}.{name}.scale"] = block[f"{layer}.{name}.scale"]
    norms(block, tree, tp, layer, "outnorm")
    dense_down(block, f"{layer}.proj_down", tp, tree, f"{layer}.proj_down")
    return tree


def llama(block, config, tp, ring):
    assert tp == 1 and not ring
    heads, width = config.num_heads(), config.head_dim
    tree = {}
    for path, array in block.items():
        module, _, leaf = path.rpartition(".")
        if module in ("attn.attn_norm", "ffn.ffn_norm"):
            path = f"{module.partition('.')[0]}.pre_norm.{leaf}"
        elif module == "attn.attn.dense_out" and leaf == "kernel":
            array = array.reshape(heads, width, -1)
        elif module.startswith("attn.attn.dense_") and module != "attn.attn.dense_out":
            array = array.reshape(*array.shape[:-1], heads, width)
        tree[path] = array
    return tree


class Memory:
    """A tree on a simulated disk."""

    def __init__(self, tree):
        self._tree = {path.removesuffix(".value"): array for path, array in tree.items()}
        self.shapes = {path: array.shape for path, array in self._tree.items()}

    def read(self, paths):
        return [self._tree[path] for path in paths]

    def name(self, path):
        return path


def convert(tree, model):
    """Convert a tree of xlstm-jax to our parameters by path."""
    return dict(checkpoint.convert(Memory(tree), model, set(shapes_of(model))))
