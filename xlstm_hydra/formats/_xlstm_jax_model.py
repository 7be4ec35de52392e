"""The metadata of xlstm-jax, of all its commits -> typed configs of ours, led by the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from xlstm_hydra.codec import Flags, Instance, collect, dotted
from xlstm_hydra.configs import ConfigDict, LlamaConfig, ModelConfig, ParallelConfig
from xlstm_hydra.problems import ConfigError, Problem, UnknownField, divisors, either, nearest, show

from . import _xlstm_jax_table as table
from ._fields import Reading, Wrong, class_path, mapping, written
from ._json_text import MetadataError, step
from ._registry import MODELS, WAY_OUT, allowed_class, config_class_of
from ._xlstm_jax_training import read_training

WRITER = "xlstm_jax"
"""What `Record.writer` is for it."""

_LAYOUT = "ParallelConfig"

SECTIONS = ("model", "optimizer", "trainer")
"""What it recorded."""


def is_xlstm_jax(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like what xlstm-jax recorded."""
    return "format" not in content and any(section in content for section in SECTIONS)


def read_xlstm_jax(content: Mapping[str, Any], lenient: bool) -> tuple[dict[str, ConfigDict], Reading]:
    """The groups that were recorded, and how the reading went.

    Raises:
        MetadataError: with every field that is wrong, missing or unknown, or that cannot be said in our configs.
    """
    reading = Reading(lenient=lenient)
    reading.section("", content, {}, SECTIONS)
    model = _read_model(reading, content.get("model"))
    groups = read_training(reading.part(), content)
    if reading.problems or model is None:
        raise MetadataError(reading.problems)
    return {"model": model, "parallel": model.parallel, **groups}, reading


def _read_model(reading: Reading, data: Any) -> ModelConfig | None:
    data = reading.section("model", data, {}, ("model_class", "parallel", "model_config"))
    families = _read_class(reading, data)
    parallel = _read_parallel(reading, "model.parallel", data.get("parallel", ""))
    config = data.get("model_config")
    if families is None:
        return None
    if not isinstance(config, dict):
        reading.problem(table.MODEL, f"expected an object, got {show(config)}" if config else "missing")
        return None
    if isinstance(families, type):
        return _read_own(reading, families, config, parallel)
    family = _read_llama(reading, config) if "" in families else _read_xlstm(reading, config, families, parallel)
    for path, copy in _copies_of_parallel(reading, config).items():
        if copy not in (None, "None", data.get("parallel")):
            _compare_parallel(reading, path, _read_parallel(reading, path, copy), parallel)
    reading.check()
    if reading.problems or family is None or parallel is None:
        return None
    try:
        return ModelConfig(
            model_class=f"xlstm_hydra.models.{family}",
            parallel=parallel,
            model_config=MODELS[family](**_fields(reading, family)),
        )
    except ConfigError as error:
        reading.problems += [_as_recorded(problem, reading.paths()) for problem in error.problems]
    except (ArithmeticError, ValueError) as error:
        reading.problem(table.MODEL, f"is no model: {error}")
    return None


def _read_class(reading: Reading, data: Mapping[str, Any]) -> Mapping[str, str] | type | None:
    """Which of our families, by layer type, the published class is; or the user's class that has been allowed."""
    if "model_class" not in data:
        reading.problem("model.model_class", "missing")
        return None
    name = data["model_class"]
    try:
        path = class_path(name)
        families = table.CLASSES.get(path) or allowed_class(path)
    except Wrong:
        families = None
    if families is None:
        fix = f"{nearest(str(name), table.CLASSES)} {WAY_OUT}"
        text = f"{show(name)} is no model class that xlstm-jax published or this program has allowed"
        reading.problem("model.model_class", text, fix)
    return families


def _read_own(reading: Reading, cls: type, config: Any, parallel: ParallelConfig | None) -> ModelConfig | None:
    """The user's model, with a config of the class that annotates its field `config`."""
    config_class = config_class_of(cls)
    if config_class is None:
        reading.problem("model.model_class", f"{cls.__name__} does not say of which class its config is")
        return None
    found = [problem.at(table.MODEL) for problem in collect(config_class, config, Flags(ignore_unknown=False))[1]]
    for problem in found:
        if isinstance(problem, UnknownField):
            reading.stray(problem.keys[0], problem.fix, is_null=problem.is_null)
        else:
            reading.problems.append(problem)
    value, problems = collect(config_class, config, Flags(ignore_unknown=True))
    if problems or reading.problems or parallel is None:
        return None
    return ModelConfig(model_class=dotted(cls), parallel=parallel, model_config=value)


def _read_parallel(reading: Reading, path: str, data: Any) -> ParallelConfig | None:
    """A layout: an object, or the `repr` of one."""
    own, before = reading.part(), len(reading.problems)
    try:
        layout = written(data)
        if not isinstance(layout, dict | Instance) or getattr(layout, "last_name", _LAYOUT) != _LAYOUT:
            raise Wrong("a ParallelConfig")
    except Wrong as wrong:
        reading.problem(path, f"expected {wrong}, got {show(data)}" if data != "" else "missing")
        return None
    own.section(path, layout, table.PARALLEL)
    if len(reading.problems) > before:
        return None
    try:
        return ParallelConfig(**own.flat())
    except ConfigError as error:
        reading.problems += [problem.at(path) for problem in error.problems]
        return None


def _compare_parallel(
    reading: Reading, path: str, copy: ParallelConfig | None, parallel: ParallelConfig | None
) -> None:
    if copy is None or parallel is None:
        return
    for name in table.PARALLEL:
        values = {f"{path}.{name}": copy.get(name), f"model.parallel.{name}": parallel.get(name)}
        if copy.get(name) != parallel.get(name):
            reading.problems.append(Problem(values, "differ, and one field here cannot say both"))


def _copies_of_parallel(reading: Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    """The layouts of the parts of the model, by path. Each part that is an object has one, which may be null."""
    found = {}
    for path in (table.MODEL, table.BLOCK, table.LAYER, table.CELL, table.FEED_FORWARD):
        part: Any = {"model": {"model_config": config}}
        for name in path.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict) and "parallel" in part:
            found[f"{path}.parallel"] = part["parallel"]
        elif isinstance(part, dict) and path != table.CELL:  # the cell had none at first
            reading.problem(f"{path}.parallel", "missing")
    return found


def _read_llama(reading: Reading, config: Any) -> str:
    reading.section(table.MODEL, config, table.LLAMA, ("parallel",))
    default = LlamaConfig.__dataclass_fields__["context_length"].default
    reading.notes.append(f"{table.MODEL}.context_length was not recorded; it is {default} here")
    return "Llama"


def _read_xlstm(
    reading: Reading, config: Any, families: Mapping[str, str], parallel: ParallelConfig | None
) -> str | None:
    config = reading.section(table.MODEL, config, table.LANGUAGE_MODEL, ("parallel", "mlstm_block"))
    block = reading.section(table.BLOCK, config.get("mlstm_block"), table.BLOCKS, ("parallel", "mlstm", "feedforward"))
    layer = mapping_or_empty(block.get("mlstm"))
    kind = layer.get("layer_type", "mlstm")
    if not isinstance(kind, str) or kind not in families:
        reading.problem(f"{table.LAYER}.layer_type", f"expected {either(families)}, got {show(kind)}")
        return None
    layer = reading.section(table.LAYER, block.get("mlstm"), table.LAYERS[kind], ("parallel", "mlstm_cell"))
    cell = reading.section(table.CELL, layer.get("mlstm_cell"), table.CELLS[kind], ("parallel", "backend"))
    _read_backend(reading, cell.get("backend"))
    _read_feed_forward(reading, block.get("feedforward"), kind)
    if "gate_linear_headwise" not in cell and parallel is not None and parallel.model_axis_size > 1:
        text = "was not recorded, and each tensor-parallel device computed its gates from its own channels alone"
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
        fix = "softmax attention is another operator" if name == "attention" else nearest(name, table.BACKENDS)
        reading.problem(f"{path}.name", f"cannot be said here: no backend {show(name)}", fix)
        return
    ours, settings_class, settings = table.BACKENDS[name]
    try:
        given = written(data.get("kwargs"))
    except Wrong as wrong:
        given = wrong
    if isinstance(given, Instance) and given.last_name != settings_class:
        reading.problem(f"{path}.kwargs", f"expected a {settings_class}, got a {step(given.name)}")
    elif isinstance(given, dict | Instance):
        reading.section(f"{path}.kwargs", given, settings)
    else:
        reading.problem(f"{path}.kwargs", f"expected the settings of {name}, got {show(data.get('kwargs'))}")
    reading.notes.append(f"{path}.name={name}: the cell is computed by backend={ours} here, equal up to rounding")


def _fields(reading: Reading, family: str) -> dict[str, Any]:
    """The fields of our config, where they need more than their recorded value."""
    fields = reading.flat()
    if family == "Llama":
        return fields
    backend = table.BACKENDS[reading.values[f"{table.CELL}.backend.name"]][0]
    fields["backend"] = backend
    if fields["gate_dtype"] is None:  # when gates had no type of their own
        fields["gate_dtype"] = fields["dtype"]
    chunk, context = fields.pop("chunk_size", None), fields["context_length"]
    if backend == "chunkwise":
        fields["chunk_size"] = _chunk_size(reading, chunk, context)
    fields["fgate_bias_init_range"] = _range(fields["fgate_bias_init_range"])
    return fields


def _chunk_size(reading: Reading, recorded: int | None, context: int) -> int:
    """The recorded size, which the rules of our config judge; where it cannot cut the context, one that can."""
    wanted = 64 if recorded is None else recorded
    if wanted < 1 or context < 1 or context % wanted == 0:
        return wanted
    size = max(size for size in divisors(context) if size <= 64)
    what = "was not recorded" if recorded is None else f"={recorded} does not divide the context length {context}"
    path = f"{table.CELL}.backend.kwargs.chunk_size"
    reading.notes.append(f"{path}{'' if recorded else ' '}{what}; it is {size} here, which is equal up to rounding")
    return size


def _range(value: Any) -> list[float]:
    """Initial bias of the forget gates; a number is a range without width."""
    if value is None:
        text = "cannot be said here: expected a number or [low, high], got null"
        raise ConfigError([Problem.about("fgate_bias_init_range", text)])
    return value if isinstance(value, list) else [value, value]


def _as_recorded(problem: Problem, paths: Mapping[str, str]) -> Problem:
    """A broken rule of our config, with the keys as they stand in the file."""

    def rename(text: str) -> str:
        for name, path in paths.items():
            text = text.replace(f"{{{name}}}", f"{{/{path}}}")
        return text

    given = {f"/{paths.get(key, f'{table.MODEL}.{key}')}": value for key, value in problem.given.items()}
    return replace(problem, given=given, rule=rename(problem.rule), fix=rename(problem.fix))


def mapping_or_empty(data: Any) -> dict[str, Any]:
    """An object, or nothing where it is none, which the reading of it will tell."""
    try:
        return mapping(data)
    except Wrong:
        return {}
