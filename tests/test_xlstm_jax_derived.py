"""Fields that xlstm-jax derives from others, and leaves at their initial values where blocks are not scanned."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import xlstm_jax_tree
from published import BLOCK, CELL, ERAS, LAYER, nested, tree
from untrained import shapes_of
from xlstm_jax_saved import save_xlstm_jax

from xlstm_hydra import load_checkpoint
from xlstm_hydra.configs import ParallelConfig, resolve_classes
from xlstm_hydra.metadata import MetadataError, read_record

MODEL, FEED_FORWARD = "model.model_config", f"{BLOCK}.feedforward"
IN_FEED_FORWARD = {
    **{f"{FEED_FORWARD}._num_blocks": 1, f"{FEED_FORWARD}._proj_up_dim": 0},
    **{f"{FEED_FORWARD}.embedding_dim": -1, f"{FEED_FORWARD}.parallel": None},
}
IN_LAYER = {
    **{f"{LAYER}._num_blocks": 1, f"{LAYER}._proj_up_dim": None, f"{LAYER}._inner_embedding_dim": None},
    **{f"{LAYER}.embedding_dim": -1, f"{LAYER}.context_length": -1, f"{LAYER}.parallel": None},
}
IN_CELL = {f"{CELL}.{name}": -1 for name in ("embedding_dim", "context_length", "num_heads")}
QUADRATIC = {"name": "parallel_stabilized", "kwargs": {}, "_registry": {}}
INITIAL = {
    "feed-forward": ("mlstm_v1", IN_FEED_FORWARD),
    "block": ("mlstm", {f"{BLOCK}._num_blocks": None, f"{BLOCK}.parallel": None}),
    "layer": ("mlstm", IN_LAYER),
    "layer rounded down": ("mlstm", {f"{LAYER}._proj_up_dim": -32, f"{CELL}.embedding_dim": -32}),
    "cell": ("mlstm", IN_CELL),
    "map of the blocks": ("mlstm_v1", {f"{MODEL}._block_map": None}),
    "llama": ("llama", {f"{MODEL}.parallel": None}),
}


def read(kind, changes=(), write=nested):
    return read_record(write(tree(kind, changes)))


@pytest.mark.parametrize("write", ERAS.values(), ids=ERAS)
@pytest.mark.parametrize(("kind", "changes"), INITIAL.values(), ids=INITIAL)
def test_a_derived_field_may_have_its_initial_value(kind, changes, write):
    record, derived = read(kind, changes, write), read(kind, write=write)
    assert record.model == derived.model and record.notes == derived.notes


def test_the_settings_of_a_backend_may_have_initial_values():
    underived = {f"{CELL}.backend": QUADRATIC | {"kwargs": {"context_length": -1}}}
    assert read("mlstm", underived).model == read("mlstm", {f"{CELL}.backend": QUADRATIC}).model


NEITHER = {
    "count": (f"{FEED_FORWARD}._num_blocks", 2, f": expected 3 from {MODEL}.num_blocks=3, got 2$"),
    "width": (f"{FEED_FORWARD}._proj_up_dim", 64, f": expected 192 from .*{FEED_FORWARD}.proj_factor=2.5.*, got 64"),
    "rounded the other way": (
        f"{FEED_FORWARD}._proj_up_dim",
        -64,
        ": expected 192 from .*_dim=64.*, got -64",
    ),
    "width of the model": (f"{FEED_FORWARD}.embedding_dim", 0, f"=0, {MODEL}.embedding_dim=64: must be equal"),
    "heads": (f"{CELL}.num_heads", 1, f"=1, {LAYER}.num_heads=4: must be equal"),
    "map of the blocks": (f"{MODEL}._block_map", "0", f": expected '0,0,0' from {MODEL}.num_blocks=3, got '0'"),
}


@pytest.mark.parametrize(("path", "value", "words"), NEITHER.values(), ids=NEITHER)
def test_any_other_value_of_a_derived_field_is_an_error(path, value, words):
    with pytest.raises(MetadataError, match=f"^{path}{words}"):
        read("mlstm_v1", {path: value})


SMALL = {f"{path}.dtype": "float32" for path in (MODEL, LAYER, CELL)} | {
    f"{MODEL}.lm_head_dtype": "float32",
    **{f"{MODEL}.scan_blocks": True, f"{CELL}.backend": QUADRATIC},
}
KINDS = {
    "mlstm": (SMALL, {**IN_LAYER, **IN_CELL, f"{BLOCK}._num_blocks": None, f"{BLOCK}.parallel": None}),
    "mlstm_v1": (SMALL | {f"{FEED_FORWARD}.dtype": "float32"}, IN_FEED_FORWARD),
    "llama": ({f"{MODEL}.scan_blocks": True}, {f"{MODEL}.parallel": None}),
}


@pytest.mark.parametrize(("kind", "changes", "initial"), [(k, *v) for k, v in KINDS.items()], ids=KINDS)
def test_blocks_that_are_not_scanned_give_the_logits_of_the_scanned_ones(tmp_path, kind, changes, initial):
    model = replace(resolve_classes(read(kind, changes).model), parallel=ParallelConfig())
    rng = np.random.default_rng(0)
    params = {path: 0.3 * rng.normal(size=shape).astype(np.float32) for path, shape in shapes_of(model).items()}
    logits = {}
    for scan in (True, False):
        text = nested(tree(kind, changes if scan else changes | initial | {f"{MODEL}.scan_blocks": False}))
        theirs = xlstm_jax_tree.write(params, model.model_config, scan=scan)
        loaded = load_checkpoint(save_xlstm_jax(tmp_path / str(scan), theirs, text))
        assert loaded.config.model_config.scan_blocks is scan
        logits[scan] = jax.jit(loaded.model.apply)({"params": loaded.params}, np.arange(96)[None])
    np.testing.assert_allclose(logits[False], logits[True], atol=1e-4)
