"""Read xlstm-jax metadata, as written by any xlstm-jax commit, into plain groups according to the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlstm_hydra.codec import Instance
from xlstm_hydra.problems import Problem, divisors, either, nearest, show

from . import _xlstm_jax_table as table
from ._json_text import path_part
from ._table_reader import PlainGroup, Reading
from ._value_types import WrongType, class_path, from_repr, mapping
from ._xlstm_jax_training import read_training

WRITER = "xlstm_jax"
"""Value of `Record.writer` for xlstm-jax."""

_LAYOUT = "ParallelConfig"

SECTIONS = ("model", "optimizer", "trainer")
"""Top-level sections of xlstm-jax metadata."""


def is_xlstm_jax(content: Mapping[str, Any]) -> bool:
    """True if a JSON object looks like metadata of xlstm-jax."""
    return "format" not in content and any(section in content for section in SECTIONS)


def read_xlstm_jax(content: Mapping[str, Any], lenient: bool) -> tuple[dict[str, PlainGroup], Reading]:
    """Return the recorded groups that can be read, and the `Reading` with the problems found.

    The model is returned as the groups `parallel` and `model_config`. For a model class that is not part of the
    published xlstm-jax code, the group `model` replaces `model_config`: it contains the recorded `model_class` and
    `model_config`, and its `class_name` is the dotted path of the model class."""
    reading = Reading(lenient=lenient)
    reading.section("", content, {}, SECTIONS)
    groups = _read_model(reading, content.get("model"))
    return groups | read_training(reading.part(), content), reading


def _read_model(reading: Reading, data: Any) -> dict[str, PlainGroup]:
    data = reading.section("model", data, {}, ("model_class", "parallel", "model_config"))
    path = _read_class(reading, data)
    parallel = _read_parallel(reading, "model.parallel", data.get("parallel", ""))
    groups = {} if parallel is None else {"parallel": parallel}
    if path is None:
        return groups
    if path not in table.PUBLISHED_CLASSES:
        return groups | {"model": PlainGroup(class_name=path, path="model", values=data)}
    config = _read_config(reading, table.PUBLISHED_CLASSES[path], data, parallel)
    return groups if config is None else groups | {"model_config": config}


def _read_class(reading: Reading, data: Mapping[str, Any]) -> str | None:
    """Return the dotted path of the model class, empty if it is not a valid path, or None if it is missing."""
    if "model_class" not in data:
        reading.problem("model.model_class", "missing")
        return None
    try:
        return class_path(data["model_class"])
    except WrongType:
        return ""


def _read_config(
    reading: Reading, families: Mapping[str, str], data: Mapping[str, Any], parallel: PlainGroup | None
) -> PlainGroup | None:
    """Read the config of a published model class.

    Args:
        reading: the reading so far.
        families: the possible config classes for this model class, by layer type.
        data: the recorded section `model`.
        parallel: the layout of the model.
    """
    config = data.get("model_config")
    if not isinstance(config, dict):
        reading.problem(table.MODEL, f"expected an object, got {show(config)}" if config else "missing")
        return None
    is_llama = "" in families
    if is_llama:
        reading.section(table.MODEL, config, table.LLAMA, ("parallel",))
    class_name = families[""] if is_llama else _read_xlstm(reading, config, families, parallel)
    for path, copy in _copies_of_parallel(reading, config).items():
        if copy not in (None, "None", data.get("parallel")):
            _compare_parallel(reading, _read_parallel(reading, path, copy), parallel)
    reading.check()
    if reading.problems or class_name is None or parallel is None:
        return None
    values = reading.flat() if is_llama else _xlstm_values(reading)
    if reading.problems:
        return None
    note = f"{table.MODEL}.context_length was not recorded; using {{}}"
    not_recorded = {"context_length": note} if is_llama else {}
    return PlainGroup(
        class_name=class_name, path=table.MODEL, values=values, paths=reading.paths(), not_recorded=not_recorded
    )


def _read_parallel(reading: Reading, path: str, data: Any) -> PlainGroup | None:
    """Read a layout, recorded as a JSON object or as the `repr` of a `ParallelConfig`."""
    own, before = reading.part(), len(reading.problems)
    try:
        layout = from_repr(data)
        if not isinstance(layout, dict | Instance) or getattr(layout, "last_name", _LAYOUT) != _LAYOUT:
            raise WrongType("a ParallelConfig")
    except WrongType as wrong:
        reading.problem(path, f"expected {wrong}, got {show(data)}" if data != "" else "missing")
        return None
    own.section(path, layout, table.PARALLEL)
    return PlainGroup(class_name=_LAYOUT, path=path, values=own.flat()) if len(reading.problems) == before else None


def _compare_parallel(reading: Reading, copy: PlainGroup | None, parallel: PlainGroup | None) -> None:
    if copy is None or parallel is None:
        return
    for name, value in parallel.values.items():
        if copy.values[name] != value:
            given = {f"{copy.path}.{name}": copy.values[name], f"{parallel.path}.{name}": value}
            reading.problems.append(Problem(given, "must be equal: xlstm-hydra has a single field for both"))


def _copies_of_parallel(reading: Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layouts recorded in the parts of the model, by path. Every part that is a JSON object must have the
    key `parallel`, which may be null."""
    found = {}
    for path in (table.MODEL, table.BLOCK, table.LAYER, table.CELL, table.FEED_FORWARD):
        part: Any = {"model": {"model_config": config}}
        for name in path.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict) and "parallel" in part:
            found[f"{path}.parallel"] = part["parallel"]
        elif isinstance(part, dict) and path != table.CELL:  # early versions recorded no layout in the cell
            reading.problem(f"{path}.parallel", "missing")
    return found


def _read_xlstm(reading: Reading, config: Any, families: Mapping[str, str], parallel: PlainGroup | None) -> str | None:
    config = reading.section(table.MODEL, config, table.LANGUAGE_MODEL, ("parallel", "mlstm_block"))
    block = reading.section(table.BLOCK, config.get("mlstm_block"), table.BLOCKS, ("parallel", "mlstm", "feedforward"))
    layer = _mapping_or_empty(block.get("mlstm"))
    kind = layer.get("layer_type", "mlstm")
    if not isinstance(kind, str) or kind not in families:
        reading.problem(f"{table.LAYER}.layer_type", f"expected {either(families)}, got {show(kind)}")
        return None
    layer = reading.section(table.LAYER, block.get("mlstm"), table.LAYERS[kind], ("parallel", "mlstm_cell"))
    cell = reading.section(table.CELL, layer.get("mlstm_cell"), table.CELLS[kind], ("parallel", "backend"))
    _read_backend(reading, cell.get("backend"))
    _read_feed_forward(reading, block.get("feedforward"), kind)
    if "gate_linear_headwise" not in cell and parallel is not None and parallel.values["model_axis_size"] > 1:
        text = "was not recorded; each tensor-parallel device computed its gates only from its own channels"
        reading.notes.append(f"{table.CELL}.gate_linear_headwise {text}")
    return families[kind]


def _read_feed_forward(reading: Reading, data: Any, kind: str) -> None:
    if data is None or data == "None":
        reading.missing(f"{table.FEED_FORWARD}.ff_type", table.NO_FEED_FORWARD)
        return
    fields = table.FEED_FORWARDS if kind == "mlstm_v1" else table.FEED_FORWARDS_V0
    reading.section(table.FEED_FORWARD, data, fields, ("parallel",))


def _read_backend(reading: Reading, data: Any) -> None:
    path = f"{table.CELL}.backend"
    data = reading.section(path, data, table.BACKEND, ("kwargs",))
    name = reading.values.get(f"{path}.name")
    if name is None:
        return
    if name not in table.BACKENDS:
        fix = "It computes softmax attention, not an mLSTM." if name == "attention" else nearest(name, table.BACKENDS)
        reading.problem(f"{path}.name", f"not supported: backend {show(name)}", fix)
        return
    ours, settings_class, settings = table.BACKENDS[name]
    try:
        given = from_repr(data.get("kwargs"))
    except WrongType as wrong:
        given = wrong
    if isinstance(given, Instance) and given.last_name != settings_class:
        reading.problem(f"{path}.kwargs", f"expected a {settings_class}, got a {path_part(given.name)}")
    elif isinstance(given, dict | Instance):
        reading.section(f"{path}.kwargs", given, settings)
    else:
        reading.problem(f"{path}.kwargs", f"expected the settings of {name}, got {show(data.get('kwargs'))}")
    reading.notes.append(f"{path}.name={name}: using backend={ours}, which gives the same results up to rounding")


def _xlstm_values(reading: Reading) -> dict[str, Any]:
    """Return the values by our field names, after converting values that are recorded in another form than ours."""
    values = reading.flat()
    backend = table.BACKENDS[reading.values[f"{table.CELL}.backend.name"]][0]
    values["backend"] = backend
    if values["gate_dtype"] is None:  # early versions had no separate data type for gates
        values["gate_dtype"] = values["dtype"]
    chunk, context = values.pop("chunk_size", None), values["context_length"]
    if backend == "chunkwise":
        values["chunk_size"] = _chunk_size(reading, chunk, context)
    bias = values["fgate_bias_init_range"]
    if bias is None:
        text = "not supported: expected a number or [low, high], got null"
        reading.problem(f"{table.CELL}.fgate_bias_init_range", text)
    elif not isinstance(bias, list):  # the same value for all heads
        values["fgate_bias_init_range"] = [bias, bias]
    return values


def _chunk_size(reading: Reading, recorded: int | None, context: int) -> int:
    """Return the recorded chunk size. If it does not divide the context length, return the largest divisor of the
    context length up to 64."""
    wanted = 64 if recorded is None else recorded
    if wanted < 1 or context < 1 or context % wanted == 0:
        return wanted
    size = max(size for size in divisors(context) if size <= 64)
    what = "was not recorded" if recorded is None else f"={recorded} does not divide the context length {context}"
    path = f"{table.CELL}.backend.kwargs.chunk_size"
    reading.notes.append(f"{path}{'' if recorded else ' '}{what}; using {size}, equal up to rounding")
    return size


def _mapping_or_empty(data: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty dict for any other data, which `section` reports later."""
    try:
        return mapping(data)
    except WrongType:
        return {}
