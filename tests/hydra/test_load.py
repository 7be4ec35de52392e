"""`load` and `validate` report every broken rule of a composed config at once."""

import copy

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from xlstm_hydra.configs import ConfigError, RunConfig
from xlstm_hydra.hydra import load, validate
from xlstm_hydra.runs import CONFIG_FILE, write_layout

BROKEN = {
    "trainer.batch_size=0": "trainer.batch_size=0: must be 1 or more",
    "optimizer.lr=-1": "optimizer.lr=-1.0: must be 0 or more",
    "model.dtype=bf16": "model.dtype='bf16': not a known value",
    "data.seed=-2": "data.seed=-2: must be 0 or more",
    "scheduler.warmup_steps=-5": "scheduler.warmup_steps=-5: must be 0 or more",
    "checkpoint.keep=all": "checkpoint.keep='all': not a known value",
    "logger.log_every_n_steps=0": "logger.log_every_n_steps=0: must be 1 or more",
    "parallel.remat=[mLSTMBlok]": "Did you mean 'mLSTMBlock'?",
    "parallel.fsdp_axis_size=0": "parallel.fsdp_axis_size=0: an axis size must be positive",
    "trainer.eval_batches=${nope}": "trainer.eval_batches='${nope}': refers to a key that does not exist: nope",
    "model.vocab_size=???": "model.vocab_size: missing. Write model.vocab_size=...",
}


def problems(cfg):
    with pytest.raises(ConfigError) as caught:
        load(cfg)
    return [str(problem) for problem in caught.value.problems]


def change(cfg, override):
    parsed = OverridesParser.create().parse_override(override)
    OmegaConf.update(cfg, parsed.key_or_group, parsed.value())


@pytest.fixture(scope="module")
def tiny():
    """The default config, composed once."""
    import hydra

    from xlstm_hydra.hydra import VERSION_BASE

    with hydra.initialize(config_path=None, **VERSION_BASE):
        return hydra.compose("config")


def test_a_valid_config_becomes_a_typed_run(tiny):
    run = load(tiny)
    assert type(run) is RunConfig
    assert run.model.model_class == "xlstm_hydra.models.mLSTMv1"
    validate(tiny)


@pytest.mark.parametrize("text", ["auto", "1e-3", "y", "2026-01-01", "a: b", "${x}", "ä\nö"])
def test_a_chosen_layout_is_written_into_the_config_of_a_run_as_omegaconf_writes_it(tmp_path, tiny, text):
    cfg = copy.deepcopy(tiny)
    (tmp_path / CONFIG_FILE).write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    run = load(tiny)
    run.parallel.remat, run.trainer.compilation_cache_dir = [text], text
    changed = OmegaConf.load(tmp_path / CONFIG_FILE)
    changed.parallel = changed.model.parallel = run.parallel.to_dict()
    changed.trainer = run.trainer.to_dict()
    write_layout(tmp_path, run)
    assert (tmp_path / CONFIG_FILE).read_text(encoding="utf-8") == OmegaConf.to_yaml(changed)


UNREADABLE = {
    "trainer.max_steps": ("abc", "expected int, got 'abc'"),
    "trainer.simulated_devices": (2.5, "expected int or null, got 2.5"),
    "optimizer.lr": (None, "expected float, got null"),
    "model.num_heads": ("many", "expected int, got 'many'"),
    "model.embedding_dim": ([3], "expected int, got [3]"),
    "parallel.remat": ("mLSTMBlock", "expected list[str], got 'mLSTMBlock'"),
    "parallel.model_axis_size": (True, "expected int, got true"),
    "task.name": ("trian", "task.name='trian': not a known value"),
    "scheduler.warmup_steps": ("${nope}", "refers to a key that does not exist: nope"),
    "data.surname": ("x", "no such field in StdlibDataConfig"),
    "trainers": ({}, "no such group"),
    "model.model_class": ("???", "missing"),
}
"""Unreadable values by key, each with the only problem reported for it."""
OUT_OF_RANGE = {
    "trainer.batch_size": (-8, "must be 1 or more"),
    "trainer.gradient_accumulate_steps": (0, "must be 1 or more"),
    "optimizer.beta1": (2.0, "must be less than 1"),
    "model.dtype": ("bf16", "not a known value"),
    "model.norm_eps": (0.0, "must be greater than 0"),
    "parallel.fsdp_axis_size": (0, "an axis size must be positive"),
    "parallel.data_axis_name": ("d p", "an axis name must consist of"),
    "scheduler.cooldown_steps": (-1, "must be 0 or more"),
    "checkpoint.save_every_n_steps": (-3, "must be 0 or more"),
    "data.validation_fraction": (float("nan"), "must be greater than 0"),
    "logger.log_every_n_steps": (0, "must be 1 or more"),
    "distributed.name": ("slurm", "Choose none, auto or explicit"),
}
"""Values that each break one rule, whatever the other values are."""


@given(st.sets(st.sampled_from(sorted(UNREADABLE | OUT_OF_RANGE))))
def test_every_invalid_value_is_reported_at_once_without_its_consequences(tiny, keys):
    cfg = OmegaConf.create(OmegaConf.to_container(tiny))  # without the schema, as `load` gets it from a plain dict
    for key in keys:
        OmegaConf.update(cfg, key, (UNREADABLE | OUT_OF_RANGE)[key][0])
    found = problems(cfg) if keys else []
    expected = {key: (UNREADABLE | OUT_OF_RANGE)[key][1] for key in keys}
    assert len(found) == len(expected), found
    for key, text in expected.items():
        assert any(problem.startswith(key) and text in problem for problem in found), (key, found)


SEVERAL = {
    "parallel=fsdp trainer.simulated_devices=8 parallel.fsdp_axis_size=3": [
        "parallel.fsdp_axis_size=3: fsdp(3) * pp(1) * tp(1) = 3 must divide the number of devices, 8",
        "trainer.batch_size=8, parallel.fsdp_axis_size=3: the batch size must be a multiple of fsdp_axis_size(3) = 3",
    ],
    "parallel=tp parallel.model_axis_size=3 trainer.simulated_devices=6 trainer.batch_size=9": [
        "model.vocab_size=256, parallel.model_axis_size=3: ",
        "model.embedding_dim=128, parallel.model_axis_size=3: ",
        "model.num_heads=8, parallel.model_axis_size=3: ",
        "trainer.batch_size=9, parallel.data_axis_size=2: ",
    ],
    "distributed=auto trainer.simulated_devices=4 trainer.batch_size=3": ["trainer.batch_size=3, parallel.data_axis"],
    "trainer.batch_size=9 trainer.gradient_accumulate_steps=2 trainer.simulated_devices=2": [
        "trainer.batch_size=9, trainer.gradient_accumulate_steps=2: ",
        "trainer.batch_size=9, parallel.data_axis_size=2: the batch size must be a multiple of data_axis_size(2) = 2",
    ],
    "trainer.max_steps=0 scheduler.warmup_steps=10": ["trainer.max_steps=0: must be 1 or more"],
    "parallel.data_axis_size=0 trainer.simulated_devices=8": [
        "parallel.data_axis_size=0: an axis size must be positive"
    ],
    "parallel.fsdp_axis_size=-1 trainer.simulated_devices=8": [
        "parallel.data_axis_size=-1, parallel.fsdp_axis_size=-1"
    ],
    "model.vocab_size=0": ["model.vocab_size=0: must be 1 or more"],
}


@pytest.mark.parametrize("line", SEVERAL)
def test_broken_rules_about_one_key_are_all_reported_and_each_once(compose, line):
    found = problems(compose(*line.split(" ")))
    assert len(found) == len(SEVERAL[line]), found
    assert all(any(problem.startswith(text) for problem in found) for text in SEVERAL[line])


@given(st.sets(st.sampled_from(sorted(BROKEN))))
def test_every_broken_value_is_reported_whatever_else_is_broken(tiny, overrides):
    cfg = tiny.copy()
    for override in overrides:
        change(cfg, override)
    found = problems(cfg) if overrides else []
    assert len(found) == len(overrides)
    assert all(any(BROKEN[override] in text for text in found) for override in overrides)


def test_a_required_value_that_is_missing_is_reported_with_its_key(compose):
    assert problems(compose("data=text")) == ["data.path: missing. Write data.path=..."]


def test_a_missing_class_is_reported_with_an_example(compose):
    [problem] = problems(compose("model=custom"))
    assert problem.startswith("model.model_class: missing")


def test_a_config_without_a_model_suggests_an_option():
    assert problems({"optimizer": {"name": "sgd", "lr": -1.0}}) == [
        "model: missing. Choose a model, for example model=tiny.",
        "optimizer.lr=-1.0: must be 0 or more",
    ]


def test_a_group_that_does_not_exist_is_refused(compose):
    assert "foo: no such group. Known: model, task" in problems(compose("+foo=3"))[0]


def test_a_field_that_does_not_exist_is_refused_with_the_nearest_name(compose):
    assert problems(compose("++model.num_head=3")) == [
        "model.num_head: no such field in mLSTMv1Config. Did you mean 'num_heads'?"
    ]


def test_rules_between_groups_name_the_keys_of_both(compose):
    [problem] = problems(compose("scheduler.warmup_steps=400"))
    assert problem.startswith("scheduler.warmup_steps=400, trainer.max_steps=300: warm-up and cool-down do not fit")


def test_a_rule_between_groups_is_silent_about_a_value_that_is_wrong_by_itself(compose):
    assert len(problems(compose("trainer.batch_size=-8", "trainer.simulated_devices=3"))) == 1


def test_simulated_devices_are_checked_against_the_layout_before_jax_starts(compose):
    [problem] = problems(compose("parallel=fsdp", "parallel.fsdp_axis_size=4", "trainer.simulated_devices=6"))
    assert "must divide the number of devices, 6. Sizes that divide 6: 1, 2, 3 or 6" in problem


def test_a_layout_on_too_few_devices_points_to_simulated_ones(compose):
    run = load(compose("parallel=tp", "parallel.data_axis_size=4"))
    [problem] = run.device_rules(1)
    assert "set trainer.simulated_devices=4." in str(problem)


def test_a_layout_inside_the_model_that_is_not_the_composed_one_is_refused(compose):
    [problem] = problems(compose("parallel=fsdp", "model.parallel={fsdp_axis_size: 2}"))
    assert problem.startswith("model.parallel: must be the same layout as in the group parallel")


def test_an_app_without_the_group_parallel_may_keep_the_layout_in_its_model(tiny):
    cfg = yaml.safe_load(OmegaConf.to_yaml(tiny, resolve=True))
    del cfg["parallel"]
    cfg["model"]["parallel"]["model_axis_size"] = 2
    assert load(cfg).parallel.model_axis_size == 2
    cfg["model"]["parallel"]["model_axis_size"] = 0
    assert problems(cfg)[0].startswith("model.parallel.model_axis_size=0: an axis size must be positive")


def test_a_reference_to_another_key_is_resolved_before_rules_are_checked(compose):
    assert load(compose("scheduler.warmup_steps=${trainer.max_steps}")).scheduler.warmup_steps == 300


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("foo.Bar", "cannot be imported: No module named 'foo'"),
        ("xlstm_hydra.configs.mLSTMv2", "has no mLSTMv2. Did you mean 'mLSTMv1Config'?"),
        ("json", "must be the dotted path of a class"),
        ("json.JSONDecoder", "the field `config` of this class is not annotated with a config dataclass"),
    ],
)
def test_a_model_class_that_cannot_be_used_is_refused_before_anything_is_built(compose, path, words):
    [problem] = problems(compose("model=custom", f"model.model_class={path}"))
    assert problem.startswith(f"model.model_class='{path}': ") and words in problem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "expected a composed config or a mapping of groups, got null"),
        ("x", "got 'x'"),
        ({3: 4}, "a key must be a string, got 3"),
        ({"trainer": {None: 4}}, "trainer: a key must be a string, got null"),
    ],
    ids=["nothing", "text", "a number as a group", "no name of a field"],
)
def test_an_object_that_is_not_a_config_gives_one_message(data, words):
    with pytest.raises(ConfigError, match=words):
        load(data)


def test_an_invalid_config_class_is_the_only_problem(compose):
    with pytest.raises(ConfigError) as raised:
        load(compose("model.config_class=os.path"))
    assert [problem.keys for problem in raised.value.problems] == [("model.config_class",)]
