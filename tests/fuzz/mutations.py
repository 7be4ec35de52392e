"""Damaged metadata, made from good metadata of every format: what fuzzing begins with."""

import json
import pathlib

from published import ERAS, tree

SAVED = pathlib.Path(__file__).parents[1] / "saved_metadata"
SEEDS = [write(tree(kind)) for kind in ("mlstm", "mlstm_v1", "llama") for write in ERAS.values()]
SEEDS += [file.read_text(encoding="utf-8") for file in sorted(SAVED.glob("version_*.json"))]

VALUES = (
    *(None, True, 0, -1, 2**62, -(2**62), 1.5, -0.0, 1e308, 5e-324, "", "None", "nan", "\ud800", "\0", "a" * 300),
    *([], {}, [[]], [None], {"": 0}, {"_type_": "os.system"}, {"_type_": 1}, {"_type_": "tuple", "value": [1]}),
    *({"_type_": "items", "value": [[1, 2]]}, "<class 'a.B'>", "A(a=5)", "ParallelConfig(data_axis_size=1)"),
    *("[1, 2]", "{'a': <class 'a.B'>}", "((((", "__import__('os')", "mLSTMBackendTritonConfig(chunk_size=0)"),
    *("triton_kernels", "fwbw_stabilized", "recurrent", "mlstm_v1", "llama", "sgd", "lion", "constant", "[[:a:]]"),
)
"""What a damaged field may hold."""

NAMES = ("embeding_dim", "_type_", "__class__", "name", "\n", "lr", "format")
"""Names of fields that a damaged object may have too."""


def paths(content, path=()):
    """The path of every value below a JSON value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def damage(content, path, kind, value, name):
    """The content with one value replaced, removed, or given a neighbor."""
    content = json.loads(json.dumps(content))
    *outer, last = path
    holder = content
    for key in outer:
        holder = holder[key]
    if kind == "remove":
        del holder[last]
    elif kind == "add" and isinstance(holder, dict):
        holder[name] = value
    else:
        holder[last] = value
    return content
