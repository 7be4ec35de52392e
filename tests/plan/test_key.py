"""Runs with the same key have the same plan."""

import copy

import pytest
from planning import device, medium_run

from xlstm_hydra import configs
from xlstm_hydra.configs import (
    OPTIONS,
    AdamWConfig,
    CosineConfig,
    DeviceConfig,
    LionConfig,
    SGDConfig,
    effect_of,
    options_of,
)
from xlstm_hydra.plan import make_plan
from xlstm_hydra.step import plan_key


def changed(value):
    """Another value of the same type, valid or not."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return type(value)(value * 1.5 + 1)
    return [*value, "other"] if isinstance(value, list) else f"{value}-other"


def with_changed(run, places):
    """The run with other values of some fields, unchecked."""
    run = copy.deepcopy(run)
    for group, name in places:
        setattr(getattr(run, group), name, changed(getattr(getattr(run, group), name)))
    return run


def places(run):
    """All fields of a run except those of model and layout."""
    groups = {name: config for name, config in run.groups().items() if name not in ("model", "parallel")}
    yield from ((group, name) for group, config in groups.items() for name in config.__dataclass_fields__)


def left_out(run):
    """The fields that do not affect the key."""
    return [place for place in places(run) if plan_key(with_changed(run, [place])) == plan_key(run)]


@pytest.mark.parametrize("optimizer", [AdamWConfig(), LionConfig(), SGDConfig(momentum=0.9)], ids=lambda one: one.name)
def test_fields_outside_the_key_do_not_change_the_plan(optimizer):
    run = medium_run(optimizer=optimizer, scheduler=CosineConfig(warmup_steps=1))
    idle = left_out(run)
    assert {("optimizer", "lr"), ("trainer", "seed"), ("data", "seed"), ("logger", "csv")} <= set(idle)
    before, after = make_plan(run, 1, device()), make_plan(with_changed(run, idle), 1, device())
    for part in ("memory", "counts", "placements", "sizes", "time", "bubble", "across_hosts"):
        assert getattr(before, part) == getattr(after, part), part


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("trainer", "batch_size", 64),
        ("trainer", "gradient_accumulate_steps", 2),
        ("trainer", "remat_policy", "dots"),
        ("optimizer", "grad_clip_norm", None),
        ("parallel", "remat", ["Embed"]),
        ("distributed", "device_order", ["dp", "fsdp", "pp", "tp"]),
    ],
)
def test_fields_that_change_the_plan_are_in_the_key(group, name, value):
    run = medium_run()
    other = copy.deepcopy(run)
    setattr(getattr(other, group), name, value)
    assert plan_key(other) != plan_key(run)


def test_every_field_of_model_and_layout_is_in_the_key():
    run = medium_run()
    for part in (run.model.model_config, run.parallel):
        for name, value in part.to_dict().items():
            other = copy.deepcopy(run)
            part_of_other = other.parallel if part is run.parallel else other.model.model_config
            setattr(part_of_other, name, 3 if value is None else changed(value))
            assert plan_key(other) != plan_key(run), name


REQUIRED = {
    configs.TextDataConfig: {"path": "books"},
    configs.EvaluateTaskConfig: {"checkpoint": "run"},
    configs.GenerateTaskConfig: {"checkpoint": "run"},
    configs.DeviceConfig: device().to_dict(),
    configs.AdamWConfig: {"grad_clip_value": 1.0},
    configs.LionConfig: {"grad_clip_value": 1.0},
    configs.SGDConfig: {"grad_clip_value": 1.0, "momentum": 0.9, "weight_decay": 0.1},
}
"""Required fields, and fields that are on before the change, because switching them on or off changes the step."""
OTHERS = [cls for cls in OPTIONS.values() if not issubclass(cls, configs.SubModelConfig | configs.ParallelConfig)]


@pytest.mark.parametrize("config_class", OTHERS, ids=lambda cls: cls.__name__)
def test_fields_of_other_groups_are_in_the_key_if_they_are_compiled_in(config_class):
    run = medium_run()
    group = next(group for group in run.__dataclass_fields__ if config_class in options_of(group))
    setattr(run, group, config_class(**REQUIRED.get(config_class, {})))
    names, others = list(config_class.__dataclass_fields__), left_out(run)
    assert [name for name in names if (group, name) not in others] == [
        name for name in names if effect_of(config_class, name).compiled
    ]


def test_the_device_is_not_in_the_key():
    run, other = medium_run(), medium_run()
    other.device = DeviceConfig(**device().to_dict())
    assert plan_key(run) == plan_key(other)
