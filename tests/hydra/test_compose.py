"""Every group composes, every option is checked by a schema, and what is composed becomes one typed config."""

import copy
import functools
import warnings

import hydra
import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError

from xlstm_hydra.configs import ConfigError, LlamaConfig, ModelConfig, mLSTMConfig, mLSTMv1Config, xLSTMConfig
from xlstm_hydra.hydra import SCHEMAS, VERSION_BASE, conf_dir, load

GROUPS = {
    "parallel": {"dp", "fsdp", "tp", "fsdp_tp", "pp"},
    "optimizer": {"adamw", "lion", "sgd"},
    "scheduler": {"constant", "cosine", "linear", "exponential"},
    "data": {"stdlib", "text", "synthetic"},
    "distributed": {"auto", "none", "explicit"},
    "task": {"train", "evaluate", "generate"},
}
NEEDS = {
    "data=text": ["data.path=books"],
    "checkpoint=xlstm_jax": ["checkpoint.init_from=runs/theirs"],
    "model=custom": ["model.model_class=xlstm_hydra.models.mLSTMv1", "+model.num_blocks=1", "+model.num_heads=1",
                     "+model.embedding_dim=64"],
    "task=evaluate": ["task.checkpoint=run"],
    "task=generate": ["task.checkpoint=run"],
    "experiment=mlstm_v1_7b": ["data.path=books"],
    "distributed=explicit": ["distributed.coordinator_address=host:1234", "distributed.num_processes=2",
                             "distributed.process_id=0"],
}  # fmt: skip
FILES = sorted(conf_dir().glob("*/*.yaml"))
OPTIONS = sorted(
    f"{file.parent.name}={file.stem}"
    for file in conf_dir().glob("*/*.yaml")
    if file.parent.name not in ("hydra", "xlstm_hydra")
)
CHECKED = [
    option for option in OPTIONS if option.split("=")[0] not in ("experiment", "debug") and "custom" not in option
]
WHITELIST = {} if VERSION_BASE else {"_execution_whitelist_": "xlstm_hydra.hydra.make_model_config"}


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_the_documented_options(group):
    assert {file.stem for file in (conf_dir() / group).glob("*.yaml")} >= GROUPS[group]


@functools.cache
def composed_with(option):
    """Return the config with an option, composed once for all tests; those that change it copy it."""
    with hydra.initialize(config_path=None, **VERSION_BASE):
        return hydra.compose("config", overrides=[option, *NEEDS.get(option, [])])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_loads(option):
    load(composed_with(option))


@pytest.mark.parametrize("option", CHECKED)
def test_every_option_refuses_a_key_that_its_schema_does_not_have(option):
    cfg = copy.deepcopy(composed_with(option))
    with pytest.raises((ConfigAttributeError, ConfigKeyError), match="nonsense"):
        OmegaConf.update(cfg, f"{option.split('=')[0]}.nonsense", 1)  # as Hydra does with an override


@pytest.mark.parametrize("option", CHECKED)
def test_every_option_refuses_a_word_in_place_of_a_number_a_boolean_or_a_list(option):
    cfg = copy.deepcopy(composed_with(option))
    node = cfg[option.split("=")[0]]
    typed = [key for key in node if isinstance(node[key], bool | int | float) or OmegaConf.is_list(node[key])]
    for key in typed:
        with pytest.raises((ValidationError, TypeError, ConfigError)):
            OmegaConf.update(node, key, "word")
            load(cfg)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_yaml_file_holds_only_values_that_differ_from_the_defaults(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    schemas = [str(entry).split("@")[0] for entry in content.pop("defaults", [])]
    names = [schema.rpartition("/")[2] for schema in schemas if schema.startswith("/xlstm_hydra/schema/")]
    for schema in map(OmegaConf.structured, (SCHEMAS[name] for name in names)):
        same = [key for key, value in content.items() if not OmegaConf.is_missing(schema, key) and schema[key] == value]
        assert same == []


@pytest.mark.parametrize("parallel", ["dp", "fsdp", "tp", "fsdp_tp", "pp"])
def test_every_layout_fits_any_number_of_devices_that_its_own_sizes_divide(compose, parallel):
    sizes = load(compose(f"parallel={parallel}")).parallel.axis_sizes(8)
    expected = {
        "dp": (8, 1, 1, 1),
        "fsdp": (1, 8, 1, 1),
        "tp": (1, 1, 1, 8),
        "fsdp_tp": (1, 4, 1, 2),
        "pp": (4, 1, 2, 1),
    }
    assert tuple(sizes.values()) == expected[parallel]


def test_a_number_for_one_mesh_axis_leaves_the_rest_to_the_data_axis(compose):
    run = load(compose("parallel=fsdp", "parallel.fsdp_axis_size=2"))
    assert run.parallel.axis_sizes(8) == {"dp": 4, "fsdp": 2, "pp": 1, "tp": 1}


@pytest.mark.parametrize("parallel", ["fsdp", "fsdp_tp", "pp"])
@pytest.mark.parametrize(
    ("model", "block"),
    [
        (["tiny"], "mLSTMBlock"),
        (["llama_165m"], "TransformerBlock"),
        (["custom", "model.model_class=xlstm_hydra.models.Llama", "+model.embedding_dim=256", "+model.num_blocks=2"],
         "TransformerBlock"),
    ],
    ids=["mLSTM", "Llama", "custom"],
)  # fmt: skip
def test_a_layout_shards_and_recomputes_the_blocks_of_whatever_model_is_chosen(compose, parallel, model, block):
    run = load(compose(f"parallel={parallel}", f"model={model[0]}", *model[1:]))
    assert run.parallel.remat == [block]
    assert run.parallel.fsdp_modules == ([] if parallel == "pp" else ["Embed", "LMHead", block])
    assert run.to_dict()["model"]["parallel"]["remat"] == [block]


def test_module_names_on_the_command_line_win_over_the_blocks_of_the_model(compose):
    run = load(compose("parallel=fsdp", "model=llama_165m", "parallel.remat=[AttnBlock,FFNBlock]"))
    assert (run.parallel.remat, run.parallel.fsdp_modules[-1]) == (["AttnBlock", "FFNBlock"], "TransformerBlock")


def test_a_mistake_in_the_model_is_reported_once_and_not_for_the_layout(compose):
    with pytest.raises(ConfigError) as caught:
        load(compose("parallel=fsdp", "model=llama_165m", "model.model_class=xlstm_hydra.models.Lama",
                     "model.config_class=null"))  # fmt: skip
    assert [problem.keys for problem in caught.value.problems] == [("model.model_class",)]


def test_an_experiment_is_chosen_without_a_plus_and_sets_several_groups(compose):
    run = load(compose("experiment=copying"))
    assert (run.data.name, run.model.model_config.context_length) == ("synthetic", 64)


def test_the_command_line_wins_over_an_experiment(compose):
    assert load(compose("experiment=copying", "trainer.max_steps=7")).trainer.max_steps == 7


def test_a_plain_dictionary_loads_like_a_composed_config(compose):
    cfg = compose("parallel=fsdp", "model=mlstm_165m")
    assert load(yaml.safe_load(OmegaConf.to_yaml(cfg, resolve=True))) == load(cfg)


@pytest.mark.parametrize(
    ("model", "config_class", "class_name"),
    [
        ("tiny", mLSTMv1Config, "mLSTMv1"),
        ("mlstm_120m", mLSTMConfig, "mLSTM"),
        ("xlstm_7_1", xLSTMConfig, "xLSTM"),
        ("llama_165m", LlamaConfig, "Llama"),
    ],
)
def test_instantiate_gives_the_model_class_its_typed_config_and_the_composed_layout(
    compose, model, config_class, class_name
):
    import xlstm_hydra.models

    cfg = compose(f"model={model}", "parallel=fsdp", "parallel.fsdp_axis_size=4")
    config = instantiate(cfg.model, **WHITELIST)
    assert type(config) is ModelConfig
    assert config.model_class is getattr(xlstm_hydra.models, class_name)
    assert type(config.model_config) is config_class
    assert config.parallel == load(cfg).parallel
    assert instantiate(cfg.model, parallel=cfg.parallel, **WHITELIST) == config


def test_instantiating_a_model_prints_no_warning(compose):
    cfg = compose()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        instantiate(cfg.model, **WHITELIST)


def test_instantiating_a_model_checks_its_rules(compose):
    with pytest.raises(Exception, match=r"model\.num_heads must divide"):
        instantiate(compose("model.num_heads=3").model, **WHITELIST)
