"""The metadata of a checkpoint: written simply, read strictly, never executed."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
from hydra import compose, initialize
from hypothesis import given
from hypothesis import strategies as st
from published import PARALLEL

from xlstm_hydra.configs import (
    DistributedConfig,
    LlamaConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    SubModelConfig,
    mLSTMConfig,
    mLSTMv1Config,
    xLSTMConfig,
)
from xlstm_hydra.formats import VERSION
from xlstm_hydra.hydra import load
from xlstm_hydra.metadata import (
    MetadataError,
    allow_modules,
    read_metadata,
    read_record,
    register_model_class,
    write_metadata,
)
from xlstm_hydra.runs import provenance

with initialize(version_base="1.3", config_path=None):
    RUN = load(compose("config", overrides=["parallel=fsdp_tp", "optimizer=lion", "scheduler=linear"]))
TEXT = json.dumps(write_metadata(RUN))


def changed(*path, value):
    """The text with one value replaced."""
    content = json.loads(TEXT)
    node = content
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(content)


def test_a_run_survives_a_round_trip():
    assert read_record(TEXT).groups == RUN.groups()


def test_a_whole_number_is_read_where_a_float_is_meant():
    optimizer = read_record(changed("config", "optimizer", "grad_clip_norm", value=1)).groups["optimizer"]
    assert optimizer.grad_clip_norm == 1.0


def test_addresses_of_processes_are_not_recorded():
    place = {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 0}
    run = dataclasses.replace(RUN, distributed=DistributedConfig(name="explicit", **place))
    groups = read_record(json.dumps(write_metadata(run))).groups
    assert groups == run.groups() | {"distributed": DistributedConfig(name="auto")}


def test_a_model_survives_a_round_trip_with_its_layout_and_class_path():
    model = ModelConfig.from_metadata(TEXT)
    assert model == RUN.model
    assert model.model_class == "xlstm_hydra.models.mLSTMv1"


def test_provenance_is_plain_json():
    record = json.loads(json.dumps(write_metadata(RUN, **provenance(["parallel=fsdp"])), allow_nan=False))
    assert record["overrides"] == ["parallel=fsdp"] and record["packages"]["hydra-core"]


def test_a_value_that_json_cannot_hold_is_refused_when_it_is_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metadata(RUN, loss=float("nan"))


def test_a_value_of_another_type_is_refused_when_it_is_written():
    run = dataclasses.replace(RUN, trainer=dataclasses.replace(RUN.trainer))
    run.trainer.max_steps = 1e3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(MetadataError, match=r"config\.trainer\.max_steps: expected int, got 1000\.0"):
        write_metadata(run)


WRONG = {
    "cut off": (TEXT[:200], "not JSON: .* The file may be cut off"),
    "not an object": ("[1, 2]", "expected a JSON object, got a list"),
    "not ours": (changed("format", value="other"), "format: expected 'xlstm_hydra', got 'other'"),
    "version 0": (changed("version", value=0), "version: expected 1 to 3, got 0. Versions are whole numbers"),
    "newer": (changed("version", value=99), "version: expected 1 to .*, got 99. The file was written by a newer"),
    "version true": (changed("version", value=True), "version: expected 1"),
    "wrong type": (
        changed("config", "model", "model_config", "embedding_dim", value="abc"),
        r"config\.model\.model_config\.embedding_dim: expected int, got 'abc'",
    ),
    "missing field": (
        changed("config", "optimizer", value={"name": "lion"}),
        r"config\.optimizer\.lr: missing, expected float(.|\n)*config\.optimizer\.beta2: missing, expected float",
    ),
    "missing field of the model": (
        changed("config", "model", "model_config", value={"_type_": "xlstm_hydra.configs.mLSTMv1Config"}),
        r"config\.model\.model_config\.chunk_size: missing, expected int",
    ),
    "missing group": (changed("config", value={}), r"config\.data: missing(.|\n)*config\.trainer: missing"),
    "number as a string": (
        changed("config", "model", "model_config", "num_heads", value="8"),
        r"config\.model\.model_config\.num_heads: expected int, got '8'",
    ),
    "fraction as a string": (changed("config", "optimizer", "lr", value="1e-3"), r"optimizer\.lr: expected float, got"),
    "float for an int": (
        changed("config", "model", "model_config", "num_heads", value=8.0),
        r"config\.model\.model_config\.num_heads: expected int, got 8\.0",
    ),
    "truth as a string": (changed("config", "checkpoint", "save_last", value="true"), "save_last: expected bool, got"),
    "null as a string": (changed("config", "optimizer", "grad_clip_norm", value="None"), "grad_clip_norm: expected"),
    "repr": (
        changed("config", "model", "parallel", value="ParallelConfig(fsdp_axis_size=2)"),
        r"config\.model\.parallel: expected ParallelConfig, got",
    ),
    "repr of a list": (changed("config", "model", "parallel", "remat", value="['A']"), r"remat: expected list\[str\]"),
    "unknown field": (
        changed("config", "model", "parallel", "fsdp_axis_sise", value=1),
        r"config\.model\.parallel\.fsdp_axis_sise: no such field.*Did you mean 'fsdp_axis_size'",
    ),
    "broken rule": (
        changed("config", "trainer", "max_steps", value=0),
        r"config\.trainer\.max_steps=0: must be 1 or more",
    ),
    "key twice": ('{"format": "xlstm_hydra", "format": "xlstm_hydra"}', "format: duplicate key"),
    "nan": ('{"format": NaN}', "NaN is not JSON"),
    "deep": ('{"a":' * 100_000, "nested too deeply"),
    "deep but whole": ('{"a":' * 200 + "1" + "}" * 200, "nested too deeply"),
    "deeper key twice": ('{"config": {"x": [1, {"a": 1, "a": 2}]}}', r"config\.x\[1\]\.a: duplicate key"),
    "deeper nan": ('{"config": [1, NaN]}', r"config\[1\]: NaN is not JSON"),
    "too large": ('{"version": 1e999}', "version: 1e999 is too large for a number"),
    "many digits": ('{"version": ' + "9" * 10_000 + "}", "version: a whole number of 10000 digits"),
    "byte order mark": ("\ufeff" + TEXT, "begins with a byte order mark"),
    "byte order mark in bytes": (b"\xef\xbb\xbf" + TEXT.encode(), "begins with a byte order mark"),
    "broken utf-8": (TEXT.encode()[:50] + b"\xff" + TEXT.encode()[50:], "not UTF-8: invalid start byte at byte 50"),
    "utf-16": (TEXT.encode("utf-16"), "not UTF-8"),
    "no text": (None, "expected text, got a NoneType"),
    "huge": (" " * (2**24 + 1), "too large for metadata: 16,777,217 bytes, at most 16,777,216 are allowed"),
    "many values": (json.dumps({"config": [0] * 50_000}), "too large for metadata: more than 50,000 values"),
    "unknown beside the config": (changed("corpse", value="a"), "corpse: no such field. Did you mean 'corpus'"),
    "wrong type beside it": (changed("overrides", value=[1]), r"overrides\[0\]: expected str, got 1"),
    "parameter": (
        changed("parameters", value={"a.b": {"shape": [1.5], "dtype": "x"}}),
        r"parameters\.a\.b: expected a",
    ),
    "negative shape": (
        changed("parameters", value={"a": {"shape": [1, -2], "dtype": "float32"}}),
        r"parameters\.a: expected a shape",
    ),
    "half a character": (changed("argv", value=["a", "\ud800"]), r"argv\[1\]: '\\ud800' contains a lone surrogate"),
    "half a character in a key": (
        changed("packages", value={"\ud800": "1"}),
        r"packages\.'\\ud800': .* lone surrogate",
    ),
    "half a character as it is": ('{"format": "\udfff"}', "format: .* contains a lone surrogate"),
    "config of another model": (
        changed("config", "model", "model_class", value="xlstm_hydra.models.Llama"),
        r"config\.model\.model_class: 'xlstm_hydra\.models\.Llama' takes a LlamaConfig, .* is a mLSTMv1Config",
    ),
    "config is a list": (changed("config", value=[]), r"config: expected an object, got \[\]"),
    "version of text": (changed("version", value="1"), "version: expected 1 to 3, got '1'"),
    "no config": (json.dumps({"format": "xlstm_hydra", "version": 1}), "config: missing"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_unreadable_metadata_is_one_error_with_the_path_of_the_field(text, words):
    for read in (read_record, ModelConfig.from_metadata):
        with pytest.raises(MetadataError, match=words):
            read(text)


def test_a_surrogate_pair_is_one_character():
    assert read_record(changed("argv", value=["\U0001f600"])).content["argv"] == ["\U0001f600"]


def test_bytes_are_read_like_text():
    assert read_record(TEXT.encode()).groups == read_record(TEXT).groups


def test_all_problems_are_reported_at_once():
    content = json.loads(TEXT)
    content["config"]["trainer"] |= {"seed": "x", "colour": 1}
    with pytest.raises(MetadataError) as error:
        read_record(json.dumps(content | {"unknown": 1}))
    assert [key for problem in error.value.problems for key in problem.keys] == [
        "unknown",
        "config.trainer.seed",
        "config.trainer.colour",
    ]


def test_a_lenient_reading_keeps_unknown_fields_and_lists_them():
    text = changed("config", "model", "model_config", "colour", value="red")
    record = read_record(text, lenient=True)
    assert record.unknown == ("config.model.model_config.colour",)
    assert record.model == RUN.model and record.content["config"]["model"]["model_config"]["colour"] == "red"


def test_a_lenient_reading_still_checks_values_and_rules():
    content = json.loads(changed("config", "colour", value="red"))
    content["config"]["trainer"]["max_steps"] = 0
    with pytest.raises(MetadataError, match=r"config\.trainer\.max_steps=0: must be 1 or more"):
        read_record(json.dumps(content), lenient=True)


VERSIONS = sorted((pathlib.Path(__file__).parent / "saved_metadata").glob("version_*.json"))


@pytest.mark.parametrize("file", VERSIONS, ids=lambda file: file.stem)
def test_a_sample_of_every_version_is_read_into_this_one(file):
    record = read_record(file.read_text(encoding="utf-8"))
    assert record.content["version"] == VERSION
    assert (record.model.parallel.fsdp_axis_size, record.model.model_config.embedding_dim) == (2, 128)
    assert (record.groups["optimizer"].lr, record.groups["scheduler"].name) == (2e-4, "linear")
    assert record.content["parameters"]["embed.embedding"]["shape"] == [256, 128]


def test_there_is_a_sample_of_every_version():
    assert [file.stem for file in VERSIONS] == [f"version_{number}" for number in range(1, VERSION + 1)]


def test_an_old_version_is_upgraded_step_by_step(monkeypatch):
    monkeypatch.setattr("xlstm_hydra.formats._own.VERSION", VERSION + 2)
    upgrades = {
        VERSION: lambda content: content | {"overrides": ["next"]},
        VERSION + 1: lambda content: content | {"overrides": [*content["overrides"], "last"]},
    }
    monkeypatch.setattr("xlstm_hydra.formats._own._UPGRADES", upgrades)
    assert read_metadata(TEXT)["overrides"] == ["next", "last"]


FEED_FORWARD = {"ff_type", "ff_proj_factor", "act_fn", "ff_dtype"}
FEED_FORWARD |= {"ff_round_proj_up_dim_up", "ff_round_proj_up_to_multiple_of"}
SINCE_VERSION_1 = {
    "mLSTM": (mLSTMConfig, {"cell_eps", *FEED_FORWARD}),
    "mLSTMv1": (mLSTMv1Config, {"cell_eps"}),
    "xLSTM": (xLSTMConfig, {"cell_eps"}),
    "Llama": (LlamaConfig, set()),
}
"""The config of each family, and its fields that records of version 1 do not have."""


@pytest.mark.parametrize("name", SINCE_VERSION_1)
def test_every_family_is_read_from_a_record_of_version_1(name):
    config_class, new = SINCE_VERSION_1[name]
    heads = {"head_dim": 8} if name == "Llama" else {"num_heads": 4}
    model = config_class(embedding_dim=32, num_blocks=2, **heads)
    run = RunConfig(model=ModelConfig(f"xlstm_hydra.models.{name}", model_config=model))
    content = json.loads(json.dumps(write_metadata(run)))
    fields = content["config"]["model"]["model_config"]
    content["config"]["model"]["model_config"] = {key: fields[key] for key in fields if key not in new}
    assert read_record(json.dumps(content | {"version": 1})).model.model_config == model


FOREIGN = {
    "model class": (
        ("config", "model", "model_class"),
        "antigravity.Evil",
        r"config\.model\.model_class: 'antigravity",
    ),
    "class that is loaded": (("config", "model", "model_class"), "collections.OrderedDict", "is not a model class"),
    "config class": (
        ("config", "model", "model_config", "_type_"),
        "antigravity.Config",
        r"config\.model\.model_config\._type_: 'antigravity\.Config' is not a class",
    ),
}


@pytest.mark.parametrize(("path", "name", "words"), FOREIGN.values(), ids=FOREIGN)
def test_a_class_that_the_program_has_not_allowed_is_refused_and_not_imported(path, name, words):
    with pytest.raises(MetadataError, match=words) as error:
        ModelConfig.from_metadata(changed(*path, value=name))
    assert "register_model_class" in str(error.value)
    assert "antigravity" not in sys.modules


@dataclasses.dataclass(kw_only=True)
class OwnConfig(SubModelConfig):
    vocab_size: int = 256
    context_length: int = 64
    layout: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)


class OwnModel:
    config: "OwnConfig"


OWN = json.dumps(
    write_metadata(dataclasses.replace(RUN, model=ModelConfig(OwnModel, ParallelConfig(fsdp_axis_size=2), OwnConfig())))
)


@pytest.fixture
def registry(monkeypatch):
    """A registry that no test leaves anything in."""
    monkeypatch.setattr("xlstm_hydra.configs._registry._allowed", {})
    monkeypatch.setattr("xlstm_hydra.configs._registry._prefixes", set())


def test_a_class_of_a_loaded_module_is_refused_until_it_is_registered(registry):
    with pytest.raises(MetadataError, match="OwnModel' is not a model class that this program allows") as error:
        read_record(OWN)
    assert "OwnConfig' is not a class" in str(error.value)
    assert register_model_class(OwnModel) is OwnModel
    model = read_record(OWN).model
    assert model.model_class == f"{__name__}.OwnModel" and model.model_config == OwnConfig()


def test_allowed_classes_can_be_passed_to_read_record(registry):
    assert read_record(OWN, classes=(OwnModel, OwnConfig)).model.model_config == OwnConfig()
    with pytest.raises(MetadataError):
        read_record(OWN)


def test_metadata_of_xlstm_jax_may_refer_to_a_registered_class(registry):
    content = {
        "model_class": f"<class '{__name__}.OwnModel'>",
        "parallel": f"ParallelConfig({', '.join(f'{key}={value!r}' for key, value in PARALLEL.items())})",
        "model_config": {"vocab_size": 10, "context_length": 5, "layout": "ParallelConfig(remat=('a',))"},
    }
    with pytest.raises(MetadataError, match="model_class: .*register_model_class"):
        read_record(json.dumps({"model": content}))
    register_model_class(OwnModel)
    config = read_record(json.dumps({"model": content})).model.model_config
    assert config == OwnConfig(vocab_size=10, context_length=5, layout=ParallelConfig(remat=["a"]))
    content["model_config"] |= {"colour": "red", "mood": None}
    with pytest.raises(MetadataError, match="^model.model_config.colour: no such field"):
        read_record(json.dumps({"model": content}))
    record = read_record(json.dumps({"model": content}), lenient=True)
    assert record.model.model_config == config
    assert (record.unknown, record.unset) == (("model.model_config.colour",), ("model.model_config.mood",))


MODULE = """
import dataclasses
from xlstm_hydra.configs import SubModelConfig

@dataclasses.dataclass(kw_only=True)
class Config(SubModelConfig):
    vocab_size: int = 256
    context_length: int = 64

class Model:
    config: Config
"""


def test_a_module_is_imported_only_if_python_has_allowed_its_prefix(registry, tmp_path, monkeypatch):
    (tmp_path / "far_models").mkdir()
    (tmp_path / "far_models" / "gru.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads(OWN)
    content["config"]["model"] |= {"model_class": "far_models.gru.Model"}
    content["config"]["model"]["model_config"] = {
        "_type_": "far_models.gru.Config",
        "vocab_size": 300,
        "context_length": 9,
    }
    for prefix in (None, "far_model", "far_models.gru.deeper"):
        if prefix:
            allow_modules(prefix)
        with pytest.raises(MetadataError, match="allow_modules"):
            read_record(json.dumps(content))
        assert "far_models.gru" not in sys.modules
    allow_modules("far_models")
    assert read_record(json.dumps(content)).model.model_config.get("vocab_size") == 300


def test_what_an_allowed_module_imports_is_not_allowed_with_it(registry, tmp_path, monkeypatch):
    (tmp_path / "loud_models.py").write_text("from subprocess import Popen\nclass Model:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    allow_modules("loud_models")
    assert read_record(changed("config", "model", "model_class", value="loud_models.Model"))
    with pytest.raises(MetadataError, match="'loud_models.Popen' is not a model class that this program allows"):
        read_record(changed("config", "model", "model_class", value="loud_models.Popen"))


def test_an_installed_package_allows_its_modules_by_an_entry_point(tmp_path):
    (tmp_path / "near_models.py").write_text("class Model:\n    pass\n")
    record = tmp_path / "near_models-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: near-models\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[xlstm_hydra.models]\nnear = near_models\n")
    code = "import sys, xlstm_hydra.metadata as m; print(m.read_record(sys.stdin.read()).model.model_class)"
    text = changed("config", "model", "model_class", value="near_models.Model")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("near_models.Model\n", "")


def test_an_allowed_module_that_cannot_be_imported_is_one_error(registry):
    allow_modules("no_such_package")
    with pytest.raises(MetadataError, match="the import of no_such_package, .* failed: ModuleNotF"):
        read_record(changed("config", "model", "model_class", value="no_such_package.Model"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_damaged_content_is_a_metadata_error_or_a_run(junk):
    content = json.loads(TEXT) | {"config": junk}
    try:
        assert read_record(json.dumps(content)).writer == "xlstm_hydra"
    except MetadataError:
        pass


@given(st.text())
def test_a_damaged_text_is_a_metadata_error(text):
    with pytest.raises(MetadataError):
        read_metadata(text)
