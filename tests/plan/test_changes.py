"""Suggested changes that make a run fit, checked by planning them."""

from dataclasses import replace

import pytest
from planning import MIB, device, medium_run
from tiny import FSDP

from xlstm_hydra.configs import PlanTaskConfig
from xlstm_hydra.plan import changes_that_fit, make_plan

SHARDED = {**FSDP, "data_axis_size": -1, "fsdp_axis_size": 2}


def planned(share, parallel=None, number=4, **changes):
    """The plan of a run on devices with this fraction of its peak memory."""
    plan = make_plan(medium_run(parallel=parallel, **changes), number, device())
    return replace(plan, device=device(plan.memory.total * share / MIB))


@pytest.fixture(scope="module")
def found():
    plan = planned(0.95, SHARDED)
    return plan, changes_that_fit(plan)


def test_every_suggested_change_fits(found):
    plan, changes = found
    assert changes
    for change in changes:
        assert change.needed <= plan.device.memory_bytes
        assert make_plan(change.cost.run, change.num_devices, plan.device).fits, change.overrides


def test_suggestions_are_single_changes_the_fastest_first(found):
    _, changes = found
    keys = {text.partition("=")[0] for change in changes for text in change.overrides}
    assert "trainer.gradient_accumulate_steps" in keys and "parallel.fsdp_axis_size" in keys
    assert all(len(change.overrides) == 1 for change in changes)
    assert [change.seconds_per_row for change in changes] == sorted(change.seconds_per_row for change in changes)


def test_remat_is_suggested_if_nothing_is_recomputed():
    plan = planned(0.8, SHARDED | {"remat": []})
    changes = changes_that_fit(plan, most=9)
    assert ("parallel.remat=[mLSTMBlock]",) in [change.overrides for change in changes]


def test_more_devices_are_suggested_if_no_change_is_enough():
    wide = {"embedding_dim": 256, "vocab_size": 4096}
    plan = planned(0.75, {**SHARDED, "fsdp_axis_size": 4}, model=wide, batch_size=4)
    assert changes_that_fit(plan) == ()  # training cannot have more devices
    (change,) = changes_that_fit(replace(plan, run=replace(plan.run, task=PlanTaskConfig(num_devices=4))))
    assert change.num_devices > 4
    assert make_plan(change.cost.run, change.num_devices, plan.device).fits
