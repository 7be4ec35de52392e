"""The models of xlstm-jax in NumPy and float64, written from MODEL_SPEC.md and independent of the package. They compute
logits from the parameter tree of one device, scanned or not, and the recorded model config."""

import numpy as np

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "relu^2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
}
swish, sigmoid = ACTIVATIONS["swish"], ACTIVATIONS["sigmoid"]


def logits(tree, config, tokens, borders):
    """Logits (B, S, V).

    Args:
        tree: arrays by path, without the boxes, of a model that was trained without tensor parallelism.
        config: `model.model_config` as xlstm-jax records it.
        tokens: (B, S).
        borders: True for the first token of each document, (B, S).
    """
    tree = {path.removesuffix(".value"): np.asarray(array, np.float64) for path, array in tree.items()}
    x = tree["token_embedding.sharded.embedding"][0][tokens]
    for index in range(config["num_blocks"]):
        x = _block(_of_block(tree, index), config, x, borders)
    x = _norm(x, tree["lm_head.out_norm.scale"], config["norm_type"], config["norm_eps"])
    return _soft_cap(x @ tree["lm_head.out_dense.kernel"], config["logits_soft_cap"])


def _of_block(tree, index):
    stack = "xlstm_block_stack.blocks."
    scanned, own = f"{stack}block.", f"{stack}{index}."
    found = {path.removeprefix(own): array for path, array in tree.items() if path.startswith(own)}
    found |= {path.removeprefix(scanned): array[index] for path, array in tree.items() if path.startswith(scanned)}
    return {path: array[0] if ".sharded." in path else array for path, array in found.items()}


def _block(block, config, x, borders):
    part = config["mlstm_block"]
    layer = {"mlstm": _layer, "mlstm_v1": _layer_v1}[part["mlstm"]["layer_type"]]
    x = x + _branch(block, config, "xlstm_res_block.xlstm", x, lambda h: layer(block, config, h, borders))
    if part["feedforward"] is not None:
        x = x + _branch(block, config, "ffn_res_block.ffn", x, lambda h: _ffn(block, part["feedforward"], h))
    return x


def _branch(block, config, path, x, function):
    def norm(name, x):
        eps = config["mlstm_block"]["mlstm"]["mlstm_cell"]["norm_eps"]
        return _norm(x, block[f"{path}_{name}.sharded.scale"], config["norm_type"], eps)

    h = function(norm("norm", x))
    return norm("post_norm", h) if config["mlstm_block"]["add_post_norm"] else h


def _ffn(block, config, x):
    def dense(name, x):
        return _dense(block, f"ffn_res_block.ffn.{name}", x)

    act = ACTIVATIONS[config["act_fn"]]
    if config["ff_type"] == "ffn_gated":
        return dense("proj_down", act(dense("proj_up_gate", x)) * dense("proj_up", x))
    return dense("proj_down", act(dense("proj_up", x)))


def _dense(block, path, x):
    leaves = f"{path}.Dense_0."
    return x @ block[f"{leaves}kernel"] + block.get(f"{leaves}bias", 0)


def _layer_v1(block, config, x, borders):
    layer, path = config["mlstm_block"]["mlstm"], "xlstm_res_block.xlstm"
    q, k, v, o, i, f = (
        _dense(block, f"{path}.{name}", x) for name in ("dense_q", "dense_k", "dense_v", "dense_o", "igate", "fgate")
    )
    norms = {name: block.get(f"{path}.{name}.scale") for name in ("q_norm", "k_norm")}
    y = _heads(layer, config, q, k, v, i, f, norms, borders)
    cell = layer["mlstm_cell"]
    y = _norm(y, block[f"{path}.outnorm.sharded.scale"], cell["norm_type_v1"], cell["norm_eps"])
    return _dense(block, f"{path}.proj_down", sigmoid(o) * y.reshape(o.shape))


def _layer(block, config, x, borders):
    layer, path = config["mlstm_block"]["mlstm"], "xlstm_res_block.xlstm"
    inner, cell = f"{path}.inner_layer.sharded", layer["mlstm_cell"]
    xm, z = (_dense(block, f"{path}.{name}", x) for name in ("proj_up_mlstm", "proj_up_z"))
    conv = _conv(xm, block[f"{inner}.conv1d.conv.kernel"], block[f"{inner}.conv1d.conv.bias"])
    act = swish(conv)

    def headwise(name, x, part: int | slice = slice(None)):
        bias = block.get(f"{inner}.{name}.bias")
        return _headwise(x, block[f"{inner}.{name}.kernel"][part]) + (0 if bias is None else bias[part])

    q, k = (
        [headwise("qk_proj", act, index) for index in (0, 1)]
        if layer["vmap_qk"]
        else [headwise(name, act) for name in ("q_proj", "k_proj")]
    )
    v = headwise("v_proj", xm)
    inputs = {"qkv": [q, k, v], "x_mlstm": [xm], "x_mlstm_conv": [conv], "x_mlstm_conv_act": [act]}[layer["gate_input"]]

    def gate(name):
        kernel, bias = (block[f"{inner}.mlstm_cell.{name}.{leaf}"] for leaf in ("kernel", "bias"))
        if not cell["gate_linear_headwise"]:
            return np.concatenate(inputs, -1) @ kernel + bias
        by_head = [_split(part, layer["num_heads"]) for part in inputs]
        return np.einsum("bshd,hod->bsh", np.concatenate(by_head, -1), kernel) + bias

    norms = {name: block.get(f"{inner}.mlstm_cell.{name}.scale") for name in ("q_norm", "k_norm")}
    y = _heads(layer, config, q, k, v, gate("igate"), gate("fgate"), norms, borders)
    y = _norm(y, block[f"{inner}.mlstm_cell.outnorm.scale"], config["norm_type"], cell["norm_eps"])
    if z.shape != act.shape:
        act = headwise("x_mlstm_conv_scaling", act)
    y = (y.reshape(z.shape) + block[f"{inner}.learnable_skip"] * act) * swish(z)
    return _dense(block, f"{path}.proj_down", y)


def _conv(x, kernel, bias):
    size, steps = len(kernel), x.shape[1]
    padded = np.pad(x, ((0, 0), (size - 1, 0), (0, 0)))
    return bias + sum(kernel[j, 0] * padded[:, j : j + steps] for j in range(size))


def _headwise(x, kernel):
    y = np.einsum("bsgd,god->bsgo", _split(x, len(kernel)), kernel)
    return y.reshape(*x.shape[:2], -1)


def _split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1)


def _heads(layer, config, q, k, v, i, f, norms, borders):
    """Gates, norms of queries and keys, and the cell, (B, S, H, dv)."""
    cell = layer["mlstm_cell"]
    i, f = _soft_cap(i, cell["gate_soft_cap"]), _soft_cap(f, cell["gate_soft_cap"])
    if cell["reset_at_document_boundaries"]:
        f = np.where(borders[..., None], cell["reset_fgate_value"], f)
    q, k, v = (_split(x, layer["num_heads"]) for x in (q, k, v))
    if cell["add_qk_norm"]:
        q, k = (
            _norm(x, norms[name], config["norm_type"], cell["norm_eps"]) for name, x in (("q_norm", q), ("k_norm", k))
        )
    return _cell(q, k, v, i, f, cell["backend"]["kwargs"].get("eps", 1e-6))


def _cell(q, k, v, i, f, eps):
    """The recurrent form, starting from zero states."""
    (B, S, H, dk), dv = q.shape, v.shape[-1]
    C, n, m = np.zeros((B, H, dk, dv)), np.zeros((B, H, dk)), np.zeros((B, H))
    log_f, out = np.log(sigmoid(f)), []
    for t in range(S):
        new_m = np.maximum(log_f[:, t] + m, i[:, t])
        keep, add = np.exp(log_f[:, t] + m - new_m)[..., None], np.exp(i[:, t] - new_m)[..., None]
        C = keep[..., None] * C + add[..., None] * k[:, t, ..., None] * v[:, t, :, None]
        n, m, query = keep * n + add * k[:, t], new_m, q[:, t] / np.sqrt(dk)
        limit = np.maximum(np.abs((n * query).sum(-1)), np.exp(-m)) + eps
        out.append(np.einsum("bhk,bhkv->bhv", query, C) / limit[..., None])
    return np.stack(out, axis=1)


def _norm(x, scale, kind, eps):
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def _soft_cap(x, cap):
    return x if cap in (None, "None") else cap * np.tanh(x / cap)
