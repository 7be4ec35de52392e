"""The plan compared with the memory that the compiler reports."""

import math
from dataclasses import replace

import pytest
from tiny import LAYOUTS, tiny_run

from xlstm_hydra.hydra import load_device
from xlstm_hydra.plan import compare, compile_step, make_plan


@pytest.fixture(scope="module")
def run():
    return tiny_run("llama", parallel=LAYOUTS["dp2_fsdp2_tp2"])


@pytest.fixture(scope="module")
def compiled(run):
    return compile_step(run, 8)


def rows(run, compiled):
    return {(row.what, row.unit): row for row in compare(make_plan(run, 8, load_device("cpu")), compiled)}


def test_the_plan_has_the_arrays_collectives_and_operations_of_the_compiler(run, compiled):
    found = rows(run, compiled)
    for what in ("parameters", "gradients", "optimizer state", "batch"):
        assert found.pop((what, "bytes")).ratio == 1
    assert found.pop(("operations", "operations")).ratio == pytest.approx(1, rel=0.02)
    memory = found.pop(("all memory", "bytes"))
    assert memory.ratio == pytest.approx(1, rel=0.1) and not memory.note
    assert ("all-gather of float32 over 2 devices", "times") in found
    assert {row.ratio for row in found.values()} == {1}


def test_a_difference_is_detected(run, compiled):
    odd = [each for each in compiled.collectives if each.operation == "all-gather"][0]
    others = replace(compiled, collectives=(*compiled.collectives[1:], replace(odd, dtype="bf16")))
    found = rows(run, others)
    assert found["all-gather of bfloat16 over 2 devices", "bytes"].ratio == 0
    assert found["all-reduce of int32 over 4 devices", "times"].ratio == math.inf


def test_memory_that_cpus_do_not_report_is_not_comparable(run, compiled):
    half = tiny_run("llama", parallel=LAYOUTS["dp2_fsdp2_tp2"], model={"dtype": "bfloat16"})
    assert "not comparable" in rows(half, compiled)["all memory", "bytes"].note
