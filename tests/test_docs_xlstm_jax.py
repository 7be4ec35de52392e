"""The page about xlstm-jax lists every field that can be read from its metadata, with its counterpart or the reason."""

import re

import pages
import pytest

from xlstm_hydra.formats import _xlstm_jax_table as model
from xlstm_hydra.formats import _xlstm_jax_training as training

TEXT = (pages.ROOT / "docs/xlstm_jax.md").read_text(encoding="utf-8")
BACKEND = "Backend of the cell"
KINDS = ("mlstm", "mlstm_v1")
SECTIONS = {
    "Layout": [model.PARALLEL],
    "xLSTM model": [model.LANGUAGE_MODEL],
    "Block": [model.BLOCKS],
    "Layer": [model.LAYERS[kind] for kind in KINDS],
    "Cell": [model.CELLS[kind] for kind in KINDS],
    "Feed-forward": [model.FEED_FORWARDS_V0, model.FEED_FORWARDS],
    "Llama model": [model.LLAMA],
    "Optimizer": [training.OPTIMIZER],
    "Schedule": [training.SCHEDULER],
    "Trainer": [training.TRAINER],
    "Callback that saves checkpoints": [training.CALLBACKS["monitor"]],
    "Callback that logs the learning rate": [training.CALLBACKS["log_lr_key"]],
    "Callback of the profiler": [training.CALLBACKS["profile_log_dir"]],
    "Callback of the evaluation harness": [training.CALLBACKS["evaluation_tasks"]],
    "Logger": [training.LOGGER],
    "Logging tools": [training.TOOL],
}
"""The tables of fields by heading, one for each column of the page."""


def rows(heading):
    """The cells of the rows below a heading."""
    section = TEXT.split(f"### {heading}\n", 1)[1].partition("\n## ")[0].partition("\n### ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in lines[2:]]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def explains(cell, field):
    """True if a cell names the field here, or gives the reason why there is none."""
    copied = [f"`{'.'.join(field.copy_of.split('.')[-2:])}`"] if field.copy_of else []
    names = [f".{field.target}`"] if field.target else []
    return bool(cell) and all(text in cell for text in [*copied, *names, field.why])


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_field_has_a_row_with_its_counterpart_or_the_reason(heading):
    shown = {name: cells[1:] for cells in rows(heading) for name in code(cells[0])}
    assert sorted(name for cells in rows(heading) for name in code(cells[0])) == sorted(shown)
    assert shown.keys() == {name for table in SECTIONS[heading] for name in table}
    for column, table in enumerate(SECTIONS[heading]):
        for name, field in table.items():
            assert explains(shown[name][column], field), (name, shown[name])


def test_every_backend_has_a_row_with_its_settings():
    shown = {code(cells[0])[0]: cells[1:] for cells in rows(BACKEND)}
    assert shown.keys() == {*model.BACKENDS, "attention"}
    for name, (backend, _, settings) in model.BACKENDS.items():
        assert code(shown[name][0]) == [backend]
        for key, field in settings.items():
            part = next(part for part in shown[name][1].split("<br>") if key in code(part.partition(":")[0]))
            assert explains(part, field), (name, key)


def test_every_section_of_the_page_is_compared():
    headings = re.findall(r"^### (.*)$", TEXT.partition("## Fields in metadata")[2], re.MULTILINE)
    assert {*headings} == {*SECTIONS, BACKEND}
