"""The search: every candidate could be typed, its estimate is near its plan, and what is said to select it does."""

import json
import random
from dataclasses import replace

import pytest
from hydra import compose, initialize

from tests.tiny import FSDP, tiny_run
from xlstm_hydra.configs import AutoParallelConfig, ConfigError, DeviceConfig, RunConfig
from xlstm_hydra.hydra import load, resolve_classes
from xlstm_hydra.models import list_parameters
from xlstm_hydra.plan import choose, layout_overrides, make_plan, search
from xlstm_hydra.plan._layouts import Refusal, layouts
from xlstm_hydra.plan._scale import Scale

MIB = 2**20


def device(mib=64.0, **changes):
    figures = {
        "memory_bandwidth": 100.0,
        "float32_tflops": 1.0,
        "bfloat16_tflops": 2.0,
        "float16_tflops": 2.0,
        "devices_per_host": 4,
        "host_bandwidth": 20.0,
        "network_bandwidth": 2.0,
    }
    return DeviceConfig(name="small", platform="gpu", kinds=[], memory_gib=mib / 1024, **figures | changes)


def auto(run, **fields):
    return replace(run, model=replace(run.model, parallel=AutoParallelConfig(**fields)))


def medium_run(**changes):
    """Large enough that activations and parameters count, at no cost: nothing is compiled."""
    sizes = {"vocab_size": 512, "embedding_dim": 128, "num_blocks": 4, "context_length": 128}
    return tiny_run("v1", model=sizes | changes.pop("model", {}), trainer={"batch_size": 32}, **changes)


@pytest.fixture(scope="module")
def found():
    return search(medium_run(), 8, device(), best=3)


def candidates(run, number):
    every = list(layouts(run, number, list_parameters(run.model)))
    return [one for one in every if isinstance(one, RunConfig)], [one for one in every if isinstance(one, Refusal)]


def test_every_candidate_keeps_the_rules_and_the_batch_and_all_are_different():
    runs, refused = candidates(medium_run(), 8)
    assert len(runs) > 100 and refused
    assert {run.trainer.batch_size for run in runs} == {32}
    for run in runs:
        assert [*run.rules(), *run.device_rules(8), *run.parallel.rules(), *run.trainer.rules()] == []
    texts = [json.dumps([run.parallel.to_dict(), run.trainer.to_dict()]) for run in runs]
    assert len(set(texts)) == len(texts)


def test_a_layout_that_the_model_does_not_allow_is_refused_with_its_rule():
    _, refused = candidates(medium_run(), 8)
    told = {refusal.sizes: str(refusal.problems[0]) for refusal in refused}
    assert "must divide model.num_heads" in told[1, 1, 1, 8]


def test_estimates_are_near_the_plans(found):
    estimates = [*found.fitting, *found.dropped]
    for estimate in random.Random(0).sample(estimates, 10):
        plan = make_plan(estimate.run, 8, device())
        text = " ".join(layout_overrides(estimate.run, found.run, brief=False))
        assert estimate.time.seconds == pytest.approx(plan.time.seconds, rel=0.1), text
        assert estimate.memory.total == pytest.approx(plan.memory.total, rel=0.15), text
        assert estimate.memory.parameters == plan.memory.parameters, text
        assert estimate.memory.batch == plan.memory.batch, text


def test_far_fewer_programs_are_traced_than_there_are_candidates():
    run = medium_run()
    runs, _ = candidates(run, 8)
    scale = Scale(runs, 8, device(), list_parameters(run.model))
    for one in runs:
        scale.estimate(one)
    assert scale.traced <= 15


def test_the_best_are_plans_in_order_that_fit(found):
    assert [plan.time.seconds for plan in found.best] == sorted(plan.time.seconds for plan in found.best)
    assert all(plan.memory.total <= found.limit for plan in found.best)
    assert found.best[0].time.seconds <= make_plan(found.run, 8, device()).time.seconds


def test_with_less_memory_less_fits_and_what_does_not_is_told():
    small = search(medium_run(), 8, device(16), best=1)
    assert small.fitting and small.dropped
    assert all(plan.memory.total <= 16 * MIB for plan in small.best)
    told = json.loads(json.dumps(small.to_dict()))
    assert len(told["candidates"]) == len(small.fitting) and len(told["dropped"]) == len(small.dropped)
    assert all("needs" in row["because"] for row in told["dropped"])


def test_what_selects_a_candidate_composes_to_it():
    texts = ["model=tiny", "trainer.batch_size=16", "trainer.max_steps=7"]

    def composed(overrides):
        with initialize(version_base="1.3", config_path=None):
            run = load(compose("config", overrides=overrides))
        return replace(run, model=resolve_classes(run.model))

    typed = composed(texts)
    runs, _ = candidates(typed, 4)
    for run in random.Random(1).sample(runs, 12):
        for brief in (True, False):
            assert composed([*texts, *layout_overrides(run, typed, brief=brief)]) == run


class TestAuto:
    """What `parallel=auto` chooses from."""

    def test_sizes_that_are_given_are_kept_and_the_others_are_tried(self):
        runs, _ = candidates(auto(medium_run(), model_axis_size=2, pipeline_axis_size=1), 8)
        sizes = {tuple(run.parallel.axis_sizes(8).values()) for run in runs}
        assert sizes == {(4, 1, 1, 2), (2, 2, 1, 2), (1, 4, 1, 2)}

    def test_remat_and_modules_that_are_given_are_kept(self):
        runs, _ = candidates(auto(medium_run(), remat=["FFNResBlock"], fsdp_modules=["LMHead"]), 4)
        assert {tuple(run.parallel.remat) for run in runs} == {("FFNResBlock",)}
        assert {tuple(run.parallel.fsdp_modules) for run in runs} == {(), ("LMHead",)}

    def test_no_type_is_chosen(self):
        model = {"dtype": "bfloat16"}
        free, _ = candidates(medium_run(model=model), 4)
        kept, _ = candidates(auto(medium_run(model=model)), 4)
        assert {run.parallel.fsdp_gather_dtype for run in free} == {None, "bfloat16"}
        assert {run.parallel.fsdp_gather_dtype for run in kept} == {None}

    def test_a_batch_is_not_cut_where_its_dropout_would_change(self):
        runs, _ = candidates(auto(medium_run(model={"dropout": 0.1})), 4)
        assert {run.trainer.gradient_accumulate_steps for run in runs} == {1}

    def test_the_choice_is_the_same_each_time_and_leaves_memory_free(self):
        chosen = [choose(auto(medium_run(), headroom=0.5, remat=["mLSTMBlock"]), 4, device(32)) for _ in range(2)]
        assert chosen[0].chosen == chosen[1].chosen
        assert not chosen[0].chosen.parallel.is_open()
        assert chosen[0].best[0].memory.total <= 16 * MIB
        assert f"of {chosen[0].tried} layouts {len(chosen[0].fitting)} fit" in chosen[0].why()

    def test_where_nothing_fits_the_nearest_miss_is_told(self):
        with pytest.raises(ConfigError, match=r"of \d+ layouts on 4 devices .*none fits.* parallel=.*Use more devices"):
            choose(auto(medium_run(), remat=["mLSTMBlock"]), 4, device(1))

    def test_where_no_layout_is_allowed_its_rule_is_told(self):
        run = auto(medium_run(), model_axis_size=8)
        with pytest.raises(ConfigError, match="parallel.model_axis_size must divide model.num_heads"):
            choose(run, 8, device())

    def test_devices_of_unknown_speed_cannot_be_chosen_for(self):
        speeds = ("memory_bandwidth", "float32_tflops", "bfloat16_tflops", "float16_tflops")
        unknown = device(**dict.fromkeys((*speeds, "host_bandwidth", "network_bandwidth"), 0.0))
        with pytest.raises(ConfigError, match="not known without the speeds"):
            choose(auto(medium_run()), 4, unknown)

    def test_only_training_and_plans_have_a_layout_chosen(self):
        run = auto(medium_run())
        from xlstm_hydra.configs import EvaluateTaskConfig

        told = [str(problem) for problem in replace_task(run, EvaluateTaskConfig(checkpoint="run")).rules()]
        assert any("a layout is chosen by what a step of training takes" in text for text in told)


def replace_task(run, task):
    from xlstm_hydra.plan._layouts import assembled

    return assembled(run, task=task)


def test_a_run_with_fsdp_of_its_own_keeps_its_modules():
    run = tiny_run("v1", {**FSDP, "fsdp_axis_size": 4, "data_axis_size": -1}, trainer={"batch_size": 8})
    runs, _ = candidates(run, 4)
    assert {tuple(one.parallel.fsdp_modules) for one in runs} == {(), ("Embed", "LMHead", "mLSTMBlock")}
    assert {one.parallel.fsdp_min_weight_size for one in runs if one.parallel.fsdp_modules} == {0}
