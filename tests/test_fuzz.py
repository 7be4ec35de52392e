"""Whatever a metadata file holds, reading it gives a record or one `MetadataError`, and imports nothing."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
from fuzz.mutations import NAMES, SEEDS, VALUES, damage, paths
from hypothesis import given, settings
from hypothesis import strategies as st

from xlstm_hydra.metadata import MetadataError, Record, read_record

FUZZER = pathlib.Path(__file__).parent / "fuzz" / "fuzz_metadata.py"
TREES = [json.loads(seed) for seed in SEEDS]
PATHS = [list(paths(tree)) for tree in TREES]


def read(text, lenient):
    loaded = set(sys.modules)
    try:
        assert isinstance(read_record(text, lenient=lenient), Record)
    except MetadataError as error:
        assert error.problems and str(error)
    assert not {name for name in set(sys.modules) - loaded if name.partition(".")[0] not in sys.stdlib_module_names}


@st.composite
def damaged_trees(draw):
    number = draw(st.integers(0, len(TREES) - 1))
    content = TREES[number]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("replace", "remove", "add")))
        path = draw(st.sampled_from(PATHS[number] if content is TREES[number] else list(paths(content)) or [()]))
        if path:
            content = damage(content, path, kind, draw(st.sampled_from(VALUES)), draw(st.sampled_from(NAMES)))
    return json.dumps(content)


@st.composite
def damaged_texts(draw):
    text = draw(st.sampled_from(SEEDS))
    at = draw(st.integers(0, len(text)))
    length = draw(st.sampled_from((0, 1, 2, 50, len(text))))
    marks = ('"', ",", "{", "}", "[", "\\", "1e999", "NaN", "'", ")", "\0", "")
    put = draw(st.sampled_from(marks) | st.text(max_size=5))
    return text[:at] + put + text[at + length :]


@settings(max_examples=300)
@given(damaged_trees(), st.booleans())
def test_a_damaged_value_gives_a_record_or_one_error(text, lenient):
    read(text, lenient)


@settings(max_examples=200)
@given(damaged_texts(), st.booleans())
def test_a_damaged_text_gives_a_record_or_one_error(text, lenient):
    read(text, lenient)


@given(st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_one_error(data):
    with pytest.raises(MetadataError):
        read_record(data)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install atheris")
def test_the_fuzzer_finds_nothing_in_a_few_seconds():
    command = [sys.executable, str(FUZZER), "-max_total_time=10", "-seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr
