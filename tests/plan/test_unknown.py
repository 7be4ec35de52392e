"""A program that the planner does not know is planned as far as it can be, and nothing else fails."""

import re

import jax
import jax.numpy as jnp
import pytest
from planning import MIB, device, medium_run
from unplannable import forget, forget_scan, mystery, mystery_run

from xlstm_hydra.configs import AutoParallelConfig, PlanTaskConfig
from xlstm_hydra.plan import (
    PlanError,
    changes_that_fit,
    count,
    make_plan,
    read_program,
    report,
    search,
    summary,
    to_dict,
    too_large,
    working_memory,
)

SQUARE = jax.ShapeDtypeStruct((64, 64), jnp.float32)
VERSIONS = r"\(xlstm-hydra \S+, jax \S+, jaxlib \S+, Python \S+\)"


def traced(function):
    return read_program(jax.make_jaxpr(function)(SQUARE))


def test_an_unknown_primitive_counts_as_one_operation_per_element_and_is_named():
    counts = count(traced(lambda x: mystery.bind(mystery.bind(x) @ x)))
    assert counts.unknown == ("mystery",)
    assert (counts.product_flops, counts.other_flops) == ({"float32": 2 * 64**3}, 2 * 64**2)


def test_an_unknown_primitive_reads_and_writes_memory():
    program = traced(lambda x: mystery.bind(x @ x).sum())
    assert working_memory(program) == 2 * 4 * 64**2


def test_known_primitives_are_not_named():
    def function(x):
        key = jax.random.fold_in(jax.random.key(0), 1)
        jax.debug.print("{}", x[0, 0])
        return jnp.where(jax.random.uniform(key, x.shape) > 0.5, jnp.tanh(x), jnp.sort(x)).cumsum() + jnp.linalg.norm(x)

    counts = count(traced(function))
    assert counts.unknown == () and counts.transcendentals > 0


@pytest.mark.parametrize("name", ["call of a program", "conditional", "loop"])
def test_an_unknown_primitive_is_found_in_nested_programs(name):
    inside = {
        "call of a program": jax.jit(mystery.bind),
        "conditional": lambda x: jax.lax.cond(x[0, 0] > 0, mystery.bind, jnp.sin, x),
        "loop": lambda x: jax.lax.fori_loop(0, 3, lambda _, x: mystery.bind(x), x),
    }
    assert count(traced(inside[name])).unknown == ("mystery",)


def test_a_model_with_an_unknown_primitive_is_planned_with_a_note():
    plan = make_plan(mystery_run(), 1, device())
    note = "primitives not known to the planner, counted as one operation per element: mystery"
    assert note in report(plan) and note in summary(plan)
    assert to_dict(plan)["work"]["unknown_primitives"] == ["mystery"]
    ours = make_plan(medium_run(), 1, device())
    assert "not known" not in report(ours) and len(summary(ours)) == 5


def auto_run():
    run = medium_run()
    run.model.parallel = AutoParallelConfig()
    return run


FAIL = {
    "a plan": lambda: make_plan(medium_run(), 8, device()),
    "a search": lambda: search(medium_run(task=PlanTaskConfig(search=True)), 8, device()),
    "parallel=auto": lambda: search(auto_run(), 8, device()),
}


@pytest.mark.parametrize("what", FAIL)
def test_unknown_parameters_are_an_error_that_names_the_primitive_and_the_versions(what, monkeypatch):
    forget_scan(monkeypatch)
    words = r"no plan can be made: the parameters of the primitive 'scan' cannot be read \(.*\): KeyError: .* "
    with pytest.raises(PlanError, match=f"^{words}{VERSIONS}. ") as failed:
        FAIL[what]()
    assert ("Choose a layout instead, such as parallel=fsdp" in str(failed.value)) == (what == "parallel=auto")


@pytest.mark.parametrize(
    ("primitive", "parameter"),
    [("dot_general", "dimension_numbers"), ("transpose", "permutation"), ("integer_pow", "y"), ("while", "body_jaxpr")],
)
def test_unknown_parameters_of_every_read_primitive_are_an_error(primitive, parameter, monkeypatch):
    forget(monkeypatch, parameter)

    def function(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: (x @ x).T ** 3, x)

    with pytest.raises(Exception, match=f"'{primitive}' cannot be read"):
        traced(function)


def test_an_exception_of_the_model_is_an_error_without_a_plan(monkeypatch):
    monkeypatch.setattr("unplannable.mysterious", None)
    with pytest.raises(PlanError, match=rf"no plan can be made: TypeError: 'NoneType' .* {VERSIONS}"):
        make_plan(mystery_run(), 1, device())


def test_a_run_that_does_not_fit_is_refused_even_if_no_change_can_be_planned(monkeypatch):
    needed = make_plan(medium_run(), 4, device()).memory.total
    plan = make_plan(medium_run(), 4, device(mib=0.8 * needed / MIB))
    forget_scan(monkeypatch)
    with pytest.raises(PlanError):
        changes_that_fit(plan)
    assert re.search(r"a step needs .*trainer.ignore_plan=true", str(too_large(plan).at("x")))
