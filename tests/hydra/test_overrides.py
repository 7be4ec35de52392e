"""The shortest command line of a config: it composes to the same config, and no argument can be removed."""

import dataclasses
import shlex
import typing

import pytest
import reference
from hydra import compose as hydra_compose
from hydra import initialize
from hydra.errors import ConfigCompositionException
from hypothesis import given, settings
from hypothesis import strategies as st
from saved import composed

from xlstm_hydra import configs
from xlstm_hydra.codec import hints, unchecked
from xlstm_hydra.configs import ConfigError, ModelConfig, ParallelConfig, RunConfig
from xlstm_hydra.hydra import SCHEMAS, VERSION_BASE, read, shortest_overrides
from xlstm_hydra.metadata import Record, read_record
from xlstm_hydra.runs import without_unused

LINES = {
    "the default": "",
    "a field": "optimizer.lr=3e-4",
    "an option": "parallel=fsdp",
    "a field that others follow": "parallel=fsdp parallel.fsdp_axis_size=2",
    "options of many groups": "model=llama_1_3b parallel=tp optimizer=lion scheduler=linear logger=quiet",
    "a recipe": "experiment=mlstm_v1_7b data.path=x",
    "two recipes": "experiment=copying debug=fast optimizer.lr=3",
    "a recipe with another model": "model=mlstm_v1_165m debug=fast",
    "lists and quotes": """model=xlstm_7_1 model.slstm_at=[1,5] data=text "data.path='a b,c'" """,
    "a task": "task=generate task.checkpoint=run task.prompt=once",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_no_command_line_is_shorter(line):
    typed = shlex.split(line)
    run = composed(*typed)
    found = shortest_overrides(run)
    assert composed(*found) == run
    assert len(shlex.join(found)) <= len(shlex.join(typed))
    assert not any(gives(run, [*found[:index], *found[index + 1 :]]) for index in range(len(found)))


def gives(run, overrides):
    """True if overrides compose to a run."""
    try:
        return composed(*overrides) == run
    except (ConfigError, ConfigCompositionException):
        return False


def test_a_model_of_the_user_is_set_field_by_field():
    @dataclasses.dataclass(kw_only=True)
    class OwnConfig(configs.SubModelConfig):
        width: int
        names: dict[str, int] = dataclasses.field(default_factory=dict)

    model = ModelConfig("own.Model", ParallelConfig(), OwnConfig(width=3, names={"a": 1}))
    record = Record(writer="xlstm_hydra", groups={"model": model, "parallel": model.parallel}, content={})
    *others, width, names = shortest_overrides(record)
    assert others[:2] == ["model=custom", "model.model_class=own.Model"]
    assert (width, names) == ("+model.width=3", "+model.names={a:1}")


SAMPLES = sorted((reference.CHECKPOINTS.parent / "metadata").glob("*/metadata.json"))
LARGE = [sample for sample in SAMPLES if "7B" in sample.parent.name or "llama" in sample.parent.name]


@pytest.mark.parametrize("sample", LARGE, ids=lambda sample: sample.parent.name)
def test_a_record_of_another_program_only_sets_its_recorded_groups(sample):
    record = read_record(sample.read_text())
    groups, _ = without_unused(record.groups)
    run = composed(*shortest_overrides(record))
    assert {name: getattr(run, name) for name in groups} == groups


TEXTS = st.sampled_from(["null", "1", "a,b", "${x}", r"\${x}", "it's", "a\\", "\\'", "[x]", "é", "", " ", "a=b", "~x"])
SCALARS: dict[typing.Any, typing.Any] = {
    int: st.integers(-3, 10**12),
    bool: st.booleans(),
    float: st.floats(allow_nan=False) | st.sampled_from([0.1, 1e-5, 3.0, 1e16]),
    str: TEXTS | st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=6).filter("???".__ne__),
    type(None): st.none(),
    typing.Any: st.none() | st.integers(-9, 9) | st.lists(st.floats(-9, 9), min_size=2, max_size=2),
}


def values(hint):
    """Any value that an annotation allows, whatever the rules say."""
    if hint in SCALARS:
        return SCALARS[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return st.lists(values(arguments[0]), max_size=3)
    return st.one_of(*map(values, arguments))


@st.composite
def a_config(draw, config_class):
    """A config in which some fields differ from their defaults."""
    known = {field.name: field for field in dataclasses.fields(config_class)}
    changed = draw(st.sets(st.sampled_from(sorted(known)), max_size=3))
    required = {name for name, field in known.items() if field.default is field.default_factory is dataclasses.MISSING}
    named = "" if config_class in (configs.DistributedConfig, configs.DeviceConfig) else "name"
    names = (changed | required) - {named}
    return unchecked(config_class, {name: draw(values(hints(config_class)[name])) for name in sorted(names)})


@st.composite
def a_run(draw):
    """A run of any options, with any values."""
    groups = {}
    for name, hint in typing.get_type_hints(RunConfig).items():
        if name != "model":
            options = [schema for schema in SCHEMAS.values() if issubclass(schema, hint)]
            groups[name] = draw(a_config(draw(st.sampled_from(options))))
    families = {"mLSTM": configs.mLSTMConfig, "mLSTMv1": configs.mLSTMv1Config, "Llama": configs.LlamaConfig}
    family = draw(st.sampled_from(sorted(families)))
    own = {"parallel": draw(a_config(ParallelConfig)), "model_config": draw(a_config(families[family]))}
    model = unchecked(ModelConfig, {"model_class": f"xlstm_hydra.models.{family}", **own})
    return unchecked(RunConfig, groups | {"model": model})


@pytest.mark.parametrize("examples", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_any_config_composes_again_from_its_shortest_command_line(examples):
    @settings(max_examples=examples, deadline=None)
    @given(a_run())
    def composes_again(run):
        with initialize(config_path=None, **VERSION_BASE):
            overrides = shlex.split(shlex.join(shortest_overrides(run)))
            assert read(hydra_compose("config", overrides=overrides))[0] == run

    composes_again()
