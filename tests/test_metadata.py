"""The text beside a checkpoint: written simply, read strictly, never run."""

import dataclasses
import json
import sys

import pytest
from hydra import compose, initialize
from hypothesis import given
from hypothesis import strategies as st

from xlstm_hydra.configs import DistributedConfig, ModelConfig, RunConfig
from xlstm_hydra.hydra import load
from xlstm_hydra.metadata import MetadataError, provenance, read_metadata, read_run, write_metadata

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


def test_a_run_comes_back_equal():
    assert read_run(TEXT) == RUN


def test_where_processes_were_is_not_recorded():
    place = {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 0}
    run = dataclasses.replace(RUN, distributed=DistributedConfig(name="explicit", **place))
    again = read_run(json.dumps(write_metadata(run)))
    assert again.distributed == DistributedConfig(name="auto")
    assert dataclasses.replace(again, distributed=run.distributed) == run


def test_a_model_comes_back_equal_with_its_layout_and_the_path_of_its_class():
    model = ModelConfig.from_metadata(TEXT)
    assert model == RUN.model
    assert model.model_class == "xlstm_hydra.models.mLSTMv1"


def test_provenance_is_plain_json():
    record = json.loads(json.dumps(write_metadata(RUN, **provenance(["parallel=fsdp"])), allow_nan=False))
    assert record["overrides"] == ["parallel=fsdp"] and record["packages"]["hydra-core"]


def test_a_value_that_json_cannot_hold_is_refused_when_it_is_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metadata(RUN, loss=float("nan"))


WRONG = {
    "cut off": (TEXT[:200], "not JSON: .* The file may be cut off"),
    "not an object": ("[1, 2]", "expected a JSON object, got a list"),
    "not ours": (changed("format", value="other"), "format: expected 'xlstm_hydra', got 'other'"),
    "newer": (changed("version", value=99), "version: expected 1 to .*, got 99. A newer xlstm-hydra wrote it"),
    "version true": (changed("version", value=True), "version: expected 1"),
    "wrong type": (
        changed("config", "model", "model_config", "embedding_dim", value="abc"),
        r"config\.model\.model_config\.embedding_dim: expected int, got 'abc'",
    ),
    "unknown field": (
        changed("config", "model", "parallel", "fsdp_axis_sise", value=1),
        r"config\.model\.parallel\.fsdp_axis_sise: no such field.*Did you mean 'fsdp_axis_size'",
    ),
    "broken rule": (
        changed("config", "trainer", "max_steps", value=0),
        r"config\.trainer\.max_steps=0: must be 1 or more",
    ),
    "key twice": ('{"format": "xlstm_hydra", "format": "xlstm_hydra"}', "format: stands there twice"),
    "nan": ('{"format": NaN}', "NaN is not JSON"),
    "deep": ('{"a":' * 100_000, "nested too deeply"),
    "no config": (json.dumps({"format": "xlstm_hydra", "version": 1}), "config: missing"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_read_is_one_error_with_the_path_of_the_field(text, words):
    with pytest.raises(MetadataError, match=words):
        read_run(text)


FOREIGN = {
    "model class": (
        ("config", "model", "model_class"),
        "antigravity.Evil",
        r"config\.model\.model_class: 'antigravity",
    ),
    "class that is loaded": (("config", "model", "model_class"), "collections.OrderedDict", "no model class that this"),
    "config class": (
        ("config", "model", "model_config", "_type_"),
        "antigravity.Config",
        r"config\.model\.model_config\._type_: 'antigravity\.Config' is no class",
    ),
}


@pytest.mark.parametrize(("path", "name", "words"), FOREIGN.values(), ids=FOREIGN)
def test_a_class_that_the_program_has_not_allowed_is_refused_and_not_imported(path, name, words):
    with pytest.raises(MetadataError, match=words) as error:
        ModelConfig.from_metadata(changed(*path, value=name))
    assert "register_model_class" in str(error.value)
    assert "antigravity" not in sys.modules


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_other_content_is_a_metadata_error_or_a_run(junk):
    content = json.loads(TEXT) | {"config": junk}
    try:
        assert isinstance(read_run(json.dumps(content)), RunConfig)
    except MetadataError:
        pass


@given(st.text())
def test_any_other_text_is_a_metadata_error(text):
    with pytest.raises(MetadataError):
        read_metadata(text)
