"""The config of a job equals the one that Hydra composes, including flags, types and missing values."""

import copy
import pickle

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.base import Node

from xlstm_hydra.cli import main as cli
from xlstm_hydra.hydra import SweepLoader, conf_dir

GROUPS = sorted(
    path.name for path in conf_dir().iterdir() if path.is_dir() and path.name not in ("hydra", "xlstm_hydra")
)
OPTIONS = {group: sorted(file.stem for file in (conf_dir() / group).glob("*.yaml")) for group in GROUPS}
VALUES = (
    *("1", "-1", "0.5", "1e-3", "1e400", "nan", "null", "true", "abc", "''", "'a, b'", '"x=y"', "a=b", "\\,", "???"),
    *("[]", "[1,2]", "[Embed,LMHead]", "{a: 1}", "{a: {b: [1, null]}}", "1,2", "range(0,3)"),
    *("${trainer.seed}", "${optimizer}", "${nowhere}", "${oc.env:HOME}", "${hydra:job.num}", "${now:%f}", "${"),
)
TEXTS = (
    *("parallel={fsdp_axis_size: 2}", "parallel.fsdp=1", "model/tiny=1", "parallel@other=dp", "+optimizer@second=lion"),
    *("+second.optimizer=3", "~device", "~experiment", "~parallel", "~parallel=dp", "+parallel=tp", "++parallel=tp"),
    *("parallel=3", "parallel=[dp,tp]", "parallel", "=", "hydra.verbose=true", "hydra.sweep.subdir=7", "hydra.x=1"),
    *("+hydra.job.env_set.A=1", "hydra={}", "hydra/launcher=basic", "seed=1", "+seed=1", "+a.b.c=1", "+a.b.c={d: 1}"),
    *("~model.scan_blocks", "~trainer.seed=42", "~trainer.nowhere", "model.parallel.fsdp_axis_size=2", "model=${seed}"),
)


@pytest.fixture(scope="module")
def loader():
    """Hydra's loader, as the command makes it."""
    yield ConfigLoaderImpl(create_automatic_config_search_path(cli.__file__, None, None))
    GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def master(loader):
    """The config of a sweep."""
    hydra = ["hydra.sweep.dir=sweep", "+hydra.job.env_set.A=b", "hydra.job.env_copy=[PATH]"]
    return loader.load_configuration("config", [*hydra, "parallel=dp,tp"], RunMode.MULTIRUN)


@pytest.fixture(scope="module")
def keys(master):
    """The dotted keys of all values and groups of values."""
    cfg = copy.deepcopy(master)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return [key for key, *_ in dump(cfg, "") if key]


def dump(node, path):
    """Every property of every node of a config."""
    state = dict(node.__dict__)
    metadata, content = dict(state.pop("_metadata").__dict__), state.pop("_content", None)
    del state["_parent"], state["_flags_cache"]
    children = list(content.items()) if isinstance(content, dict) else list(enumerate(content or ()))
    is_container = isinstance(content, dict | list)
    yield path, type(node), metadata, repr(state), None if is_container or isinstance(content, Node) else content
    if isinstance(content, Node):
        children, is_container = [("", content)], True
    for key, child in children if is_container else ():
        assert child._get_parent() is node
        yield from dump(child, f"{path}.{key}" if path else str(key))


def composed(loader, master, overrides):
    """Config of a job, or the error."""
    try:
        return list(dump(loader.load_sweep_config(master, list(overrides)), ""))
    except Exception as error:
        return type(error), str(error)


def choices():
    """An option of a group."""
    return st.sampled_from(GROUPS).flatmap(
        lambda group: st.sampled_from(OPTIONS[group]).map(lambda name: f"{group}={name}")
    )


def values(keys):
    """A value set, added or deleted."""
    forms = st.sampled_from(["{}={}", "{}={}", "{}={}", "+{}={}", "++{}={}", "~{}={}", "{}.new={}", "+{}.new={}"])
    return st.builds(str.format, forms, st.sampled_from(keys), st.sampled_from(VALUES))


@pytest.mark.parametrize("examples", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_a_job_gets_the_config_that_hydra_composes_or_the_same_error(loader, master, keys, examples):
    single = st.one_of(choices(), values(keys), values(keys), values(keys), st.sampled_from(TEXTS))

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(single, max_size=4), st.lists(values(keys), max_size=1))
    def gets_the_same(overrides, before):
        fast = SweepLoader(loader)
        composed(fast, master, [*before, *overrides])  # leaves nothing behind
        assert composed(fast, master, overrides) == composed(loader, master, overrides)

    gets_the_same()


GOOD = [
    ["optimizer.lr=1e-3", "parallel=fsdp", "+note='a, b'", "parallel.remat=[Embed]", "hydra.sweep.subdir=3"],
    ["model=llama_165m", "~logger.tensorboard", "+extra.deep={a: [1, null]}", "data.val_path=${hydra:job.num}"],
    ["trainer.seed=${oc.decode:'3'}", "trainer.compute_dtype=null", "data=text", "++trainer.max_steps=3"],
    ["parallel={fsdp_axis_size: 2}", "+optimizer@second=lion", "+second.lr=3"],
    ["parallel.fsdp_axis_size=4", "parallel={fsdp_axis_size: 2}", "trainer={seed: 3}", "trainer.seed=5"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", GOOD, ids=" ".join)
def test_jobs_of_different_kinds_get_the_config_that_hydra_composes(loader, master, overrides):
    fast = SweepLoader(loader)
    for point in ([], overrides, overrides[::-1], overrides):
        assert composed(fast, master, point) == composed(loader, master, point)


def test_points_that_differ_in_values_are_composed_once(loader, master, monkeypatch):
    fast, calls, hydras = SweepLoader(loader), [], ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda *args: calls.append(1) or hydras(*args))
    for number in range(20):
        for layout in ("dp", "tp"):
            fast.load_sweep_config(master, [f"optimizer.lr={number}", f"parallel={layout}", f"+new={number}"])
    assert len(calls) == 2


def test_jobs_share_nothing_mutable(loader, master):
    fast = SweepLoader(loader)
    first = fast.load_sweep_config(master, ["trainer.seed=1"])
    before = list(dump(fast.load_sweep_config(master, ["trainer.seed=2"]), ""))
    OmegaConf.set_struct(first, False)
    first.hydra.job.num, first.optimizer.lr, first.parallel.remat = 7, 7.0, ["a"]
    first.hydra.overrides.task.append("x")
    assert list(dump(fast.load_sweep_config(master, ["trainer.seed=2"]), "")) == before


def test_cached_values_of_resolvers_come_from_the_sweep(loader, master):
    setup_globals()
    kept = copy.deepcopy(master)
    when = OmegaConf.select(kept, "hydra.run.dir")
    job = SweepLoader(loader).load_sweep_config(kept, ["trainer.seed=1"])
    assert job.hydra.run.dir == when


def test_a_pickled_loader_composes_the_same_without_its_cache(loader, master):
    fast = SweepLoader(loader)
    expected = composed(fast, master, ["optimizer.lr=3"])
    again = pickle.loads(pickle.dumps(fast))
    assert len(pickle.dumps(fast)) < 2 * len(pickle.dumps(loader))
    assert composed(again, master, ["optimizer.lr=3"]) == expected


def test_the_config_of_a_job_can_be_pickled(loader, master):
    job = SweepLoader(loader).load_sweep_config(master, ["model=llama_165m"])
    assert list(dump(pickle.loads(pickle.dumps(job)), "")) == list(dump(job, ""))


def test_changing_the_config_of_a_job_does_not_change_others(loader, master):
    fast = SweepLoader(loader)
    first = fast.load_sweep_config(master, ["optimizer.lr=3"])
    expected = list(dump(copy.deepcopy(first), ""))
    other = fast.load_sweep_config(master, ["optimizer.lr=3"])
    other.trainer.seed, other.parallel.remat, other.hydra.job.env_set.A = 7, ["LMHead"], "c"
    assert list(dump(fast.load_sweep_config(master, ["optimizer.lr=3"]), "")) == expected
