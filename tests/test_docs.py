"""The tables in docs/ match the scripts that write them."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch):
    """Constants of a script, read without running it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name=name)


def table_rows(page):
    """Cells of every table row of a page."""
    lines = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_page_lists_every_family_on_every_layout_as_equal_to_one_device(script):
    layouts = script("layouts")
    shown = {(row[0], row[1]): row[2:] for row in table_rows("layouts") if len(row) == 5}
    for family in layouts["FAMILIES"]:
        for layout in layouts["LAYOUTS"]:
            _, loss, gradients = map(float, shown[family, layout])
            assert loss < 1e-12 and gradients < 1e-8, (family, layout)


def test_the_page_lists_every_plan_within_its_tolerance_of_the_compiler(script):
    shown = {row[0]: row[1:] for row in table_rows("plan") if len(row) == 8}
    comparable = 0
    for name in script("plan")["CASES"]:
        arrays, collectives, _, _, memory, _, operations = shown[name]
        assert arrays == "equal" and collectives.endswith(" equal"), name
        assert float(operations) == pytest.approx(1, abs=0.05), name
        if "bfloat16" not in name:
            comparable += 1
            assert float(memory) == pytest.approx(1, abs=0.1), name
    assert comparable >= 12
