"""The search: candidates are valid, estimates are close to plans, and the printed overrides select the layout."""

import json
import random
from dataclasses import replace

import pytest
from hydra import compose, initialize
from planning import MIB, device, medium_run
from tiny import FSDP, tiny_run

from xlstm_hydra.configs import AutoParallelConfig, ConfigError, EvaluateTaskConfig, RunConfig, resolve_classes
from xlstm_hydra.hydra import load
from xlstm_hydra.models import list_parameters
from xlstm_hydra.plan import FEW, Refusal, layout_overrides, layouts, make_plan, search


def auto(run, **fields):
    return replace(run, model=replace(run.model, parallel=AutoParallelConfig(**fields)))


@pytest.fixture(scope="module")
def found():
    """A search on four devices with one choice of `remat`."""
    return search(auto(medium_run(), remat=["mLSTMBlock"]), 4, device(), best=2)


def candidates(run, number):
    every = list(layouts(run, number, list_parameters(run.model)))
    return [one for one in every if isinstance(one, RunConfig)], [one for one in every if isinstance(one, Refusal)]


def test_candidates_are_valid_and_distinct_and_keep_the_batch():
    runs, refused = candidates(medium_run(), 8)
    assert len(runs) > 100 and refused
    assert {run.trainer.batch_size for run in runs} == {32}
    for run in runs:
        assert [*run.rules(), *run.device_rules(8), *run.parallel.rules(), *run.trainer.rules()] == []
    texts = [json.dumps([run.parallel.to_dict(), run.trainer.to_dict()]) for run in runs]
    assert len(set(texts)) == len(texts)


def test_an_invalid_layout_is_refused_with_its_rule():
    _, refused = candidates(medium_run(), 8)
    told = {refusal.sizes: str(refusal.problems[0]) for refusal in refused}
    assert "must divide model.num_heads" in told[1, 1, 1, 8]


@pytest.mark.parametrize(("stages", "time", "memory"), [(1, 0.07, 0.1), (2, 0.1, 0.2)], ids=["no pipeline", "pipeline"])
def test_estimates_are_close_to_plans(found, stages, time, memory):
    estimates = [one for one in (*found.fitting, *found.dropped) if one.sizes["pp"] == stages]
    for estimate in random.Random(0).sample(estimates, 3):
        plan = make_plan(estimate.run, 4, device())
        text = " ".join(layout_overrides(estimate.run, found.run, brief=False))
        assert estimate.time.seconds == pytest.approx(plan.time.seconds, rel=time), text
        assert estimate.memory.total == pytest.approx(plan.memory.total, rel=memory), text
        assert estimate.memory.parameters == plan.memory.parameters, text
        assert estimate.memory.batch == plan.memory.batch, text


def test_few_programs_are_traced(found):
    assert found.tried > 40 and found.traced <= 5


def test_the_best_layouts_are_plans_that_fit_in_order(found):
    assert [plan.time.seconds for plan in found.best] == sorted(plan.time.seconds for plan in found.best)
    assert all(plan.memory.total <= found.limit for plan in found.best)
    assert found.best[0].run in [one.run for one in found.fitting[:2]]


def test_layouts_that_do_not_fit_are_listed_with_the_reason(found):
    half = sorted(one.memory.total for one in found.fitting)[found.tried // 2] / MIB
    small = search(auto(medium_run(), remat=["mLSTMBlock"], headroom=0), 4, device(half), best=0)
    assert small.fitting and small.dropped and small.tried == found.tried
    told = json.loads(json.dumps(small.to_dict()))
    assert len(told["candidates"]) == len(small.fitting) and len(told["dropped"]) == len(small.dropped)
    assert all(row["memory_bytes"] > told["memory_limit"] for row in told["dropped"])
    assert all("needs" in row["because"] for row in told["dropped"])


def test_the_overrides_of_a_candidate_compose_to_it():
    texts = ["model=tiny", "trainer.batch_size=16", "trainer.max_steps=7"]

    def composed(overrides):
        with initialize(version_base="1.3", config_path=None):
            run = load(compose("config", overrides=overrides))
        return replace(run, model=resolve_classes(run.model))

    typed = composed(texts)
    runs, _ = candidates(typed, 4)
    for run in random.Random(1).sample(runs, 6):
        for brief in (True, False):
            assert composed([*texts, *layout_overrides(run, typed, brief=brief)]) == run


FLAT = {"pipeline_axis_size": 1, "model_axis_size": 1}


class TestAuto:
    """What `parallel=auto` chooses from."""

    def test_given_sizes_are_kept_and_others_vary(self):
        runs, _ = candidates(auto(medium_run(), model_axis_size=2, pipeline_axis_size=1), 8)
        sizes = {tuple(run.parallel.axis_sizes(8).values()) for run in runs}
        assert sizes == {(4, 1, 1, 2), (2, 2, 1, 2), (1, 4, 1, 2)}

    def test_given_remat_and_modules_are_kept(self):
        runs, _ = candidates(auto(medium_run(), remat=["FFNResBlock"], fsdp_modules=["LMHead"]), 4)
        assert {tuple(run.parallel.remat) for run in runs} == {("FFNResBlock",)}
        assert {tuple(run.parallel.fsdp_modules) for run in runs} == {(), ("LMHead",)}

    def test_no_dtype_is_chosen(self):
        model = {"dtype": "bfloat16"}
        free, _ = candidates(medium_run(model=model), 4)
        kept, _ = candidates(auto(medium_run(model=model)), 4)
        assert {run.parallel.fsdp_gather_dtype for run in free} == {None, "bfloat16"}
        assert {run.parallel.fsdp_gather_dtype for run in kept} == {None}

    def test_no_accumulation_is_chosen_if_it_changes_dropout(self):
        runs, _ = candidates(auto(medium_run(model={"dropout": 0.1})), 4)
        assert {run.trainer.gradient_accumulate_steps for run in runs} == {1}

    def test_the_choice_is_deterministic_and_leaves_memory_free(self):
        run = auto(medium_run(), headroom=0.5, remat=["mLSTMBlock"], **FLAT)
        first, second = (search(run, 2, device(32), best=FEW) for _ in range(2))
        assert first.chosen == second.chosen and not first.chosen.parallel.is_open()
        assert first.best[0].memory.total <= 16 * MIB
        assert f"{len(first.fitting)} of {first.tried} layouts fit" in first.why()

    def test_if_nothing_fits_the_smallest_layout_is_reported(self):
        with pytest.raises(ConfigError, match=r"none of \d+ layouts on 4 x .* fits .* parallel=.*Use more devices"):
            search(auto(medium_run(), remat=["mLSTMBlock"], **FLAT), 4, device(1)).chosen  # noqa: B018

    def test_if_no_layout_is_valid_the_rule_is_reported(self):
        run = auto(tiny_run("v1", trainer={"batch_size": 4}), **FLAT)
        with pytest.raises(ConfigError, match="trainer.batch_size=4, .*the batch size must be a multiple of"):
            search(run, 8, device()).chosen  # noqa: B018

    def test_devices_of_unknown_speed_have_no_fastest_layout(self):
        speeds = ("memory_bandwidth", "float32_tflops", "bfloat16_tflops", "float16_tflops")
        unknown = device(**dict.fromkeys((*speeds, "host_bandwidth", "network_bandwidth"), 0.0))
        with pytest.raises(ConfigError, match="no speeds are known for"):
            search(auto(medium_run(), remat=["mLSTMBlock"], **FLAT), 4, unknown, best=1).chosen  # noqa: B018

    def test_only_training_and_plans_choose_a_layout(self):
        with pytest.raises(ConfigError, match="parallel=auto chooses a layout for training only"):
            replace(auto(medium_run()), task=EvaluateTaskConfig(checkpoint="run"))


def test_a_run_with_fsdp_of_its_own_keeps_its_modules():
    run = tiny_run("v1", {**FSDP, "fsdp_axis_size": 4, "data_axis_size": -1}, trainer={"batch_size": 8})
    runs, _ = candidates(run, 4)
    assert {tuple(one.parallel.fsdp_modules) for one in runs} == {(), ("Embed", "LMHead", "mLSTMBlock")}
    assert {one.parallel.fsdp_min_weight_size for one in runs if one.parallel.fsdp_modules} == {0}
