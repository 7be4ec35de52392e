"""Other Hydra apps find our groups, and installing our package does not change them."""

import subprocess
import sys
from dataclasses import dataclass

import hydra
import pytest
from hydra.core.config_store import ConfigStore

from xlstm_hydra.hydra import VERSION_BASE, load, register

APP = """
import hydra
from omegaconf import OmegaConf
from xlstm_hydra.hydra import VERSION_BASE, load

@hydra.main(config_path=".", config_name="app", **VERSION_BASE)
def main(cfg):
    print(OmegaConf.to_yaml(cfg.parallel, resolve=True), load(cfg).model.model_class)

main()
"""


@dataclass
class Theirs:
    """A config that another app registers."""

    theirs: int = 1


@pytest.fixture
def store():
    """Hydra's ConfigStore, which is restored afterwards."""
    store = ConfigStore.instance()
    before = {name: dict(node) if isinstance(node, dict) else node for name, node in store.repo.items()}
    yield store
    store.repo = before


@pytest.fixture
def compose_in(tmp_path):
    """Compose a config from the text of its YAML file and of other files."""

    def compose(text, *overrides, **files):
        for name, content in {"app": text, **files}.items():
            path = tmp_path / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        with hydra.initialize_config_dir(str(tmp_path), **VERSION_BASE):
            return hydra.compose("app", overrides=list(overrides))

    return compose


def test_another_app_composes_and_loads_our_groups(compose_in):
    cfg = compose_in("defaults: [parallel: fsdp, model: tiny]", "parallel.fsdp_axis_size=4", "model.num_blocks=3")
    assert load(cfg).parallel.fsdp_axis_size == 4
    assert cfg.model.num_blocks == 3 and cfg.parallel.data_axis_size == -1


def test_another_app_that_has_layouts_only_gets_those_of_our_mlstm_models(compose_in):
    cfg = compose_in("defaults: [parallel: fsdp, _self_]\nmodel: {theirs: 1}")
    assert list(cfg.parallel.fsdp_modules) == ["Embed", "LMHead", "mLSTMBlock"]
    assert list(compose_in("defaults: [parallel@mesh: fsdp]").mesh.remat) == ["mLSTMBlock"]


def test_another_app_can_put_our_groups_under_its_own_keys(compose_in):
    cfg = compose_in("defaults: [parallel@mesh: tp, optimizer@student.optimizer: lion]")
    assert (cfg.mesh.model_axis_size, cfg.student.optimizer.name) == (-1, "lion")


def test_a_schema_of_ours_can_be_the_base_of_an_option_in_another_app(compose_in):
    mine = "defaults: [/xlstm_hydra/schema/adamw@_here_, _self_]\nlr: 0.5"
    cfg = compose_in("defaults: [optimizer: mine]", **{"optimizer/mine": mine})
    assert (cfg.optimizer.lr, cfg.optimizer.beta2) == (0.5, 0.95)


def test_a_config_that_another_app_registers_under_one_of_our_names_stays_its_own(store, compose_in):
    store.store(name="config", node=Theirs)
    store.store(group="optimizer", name="adamw", node=Theirs)
    assert compose_in("defaults: [optimizer: adamw, config]") == {"theirs": 1, "optimizer": {"theirs": 1}}


def test_a_primary_config_of_another_app_called_config_stays_its_own(store):
    store.store(name="config", node=Theirs)
    with hydra.initialize(config_path=None, **VERSION_BASE):
        assert hydra.compose("config") == {"theirs": 1}


def test_a_yaml_file_of_another_app_wins_over_ours(compose_in):
    assert compose_in("defaults: [optimizer: adamw]", **{"optimizer/adamw": "theirs: 1"}).optimizer == {"theirs": 1}


def test_options_of_another_app_are_added_to_ours_in_the_same_group(compose_in):
    cfg = compose_in("defaults: [optimizer: mine]", "optimizer=lion", **{"optimizer/mine": "theirs: 1"})
    assert cfg.optimizer.name == "lion"


def test_composing_does_not_change_the_config_store_of_another_app(store, compose_in):
    before = str(store.repo)
    compose_in("defaults: [parallel: fsdp, model: tiny]")
    assert str(store.repo) == before


def test_registering_twice_is_harmless_and_gives_the_same_config(store, compose_in):
    expected = compose_in("defaults: [parallel: fsdp, model: tiny]")
    register()
    register()
    assert compose_in("defaults: [parallel: fsdp, model: tiny]") == expected


def test_a_small_app_runs_and_lists_our_groups_in_its_help(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text("defaults: [parallel: fsdp, model: tiny]")

    def run(*arguments):
        command = [sys.executable, "app.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    done = run("parallel.fsdp_axis_size=2")
    assert "fsdp_axis_size: 2" in done.stdout and "xlstm_hydra.models.mLSTMv1" in done.stdout
    assert done.stderr == ""
    assert "parallel: auto, dp, fsdp, fsdp_tp, pp, tp" in run("--help").stdout
    assert "xlstm_hydra/" not in run("--help").stdout.partition("== Config ==")[0]


def test_an_app_that_does_not_use_our_groups_does_not_import_our_package(tmp_path):
    (tmp_path / "app.yaml").write_text("a: 1")
    code = f"""
import sys, hydra
sys.argv = ["app", "a=2"]
hydra.main(config_path={str(tmp_path)!r}, config_name="app", **{VERSION_BASE!r})(lambda cfg: None)()
print(sorted(name for name in sys.modules if name.startswith("xlstm_hydra")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['xlstm_hydra', 'xlstm_hydra.conf_dir']"
