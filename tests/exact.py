"""Programs in float64, where rounding cannot hide a wrong factor on a small gradient."""

import functools
import json

import jax
import numpy as np
from tiny import LAYOUTS, results, tiny_run

from xlstm_hydra.parallel import build_mesh
from xlstm_hydra.step import build_program

APART = {
    "v1": {"reset_at_document_boundaries": True},
    "v0": {"reset_at_document_boundaries": True},
    "xlstm": {"reset_at_document_boundaries": True, "dropout": 0.3},
    "llama": {"mask_across_document_boundaries": True},
}
"""Options that separate the documents of a row; dropout too where the model compiles slowly."""


def program(family, layout=None, **groups):
    groups = {"model": APART[family]} | groups
    run = tiny_run(family, parallel=LAYOUTS[layout] if isinstance(layout, str) else layout, **groups)
    config = run.model.model_config
    for key in {"dtype", "lm_head_dtype", "gate_dtype"} & set(config.__dataclass_fields__):
        setattr(config, key, "float64")  # more than a user may ask for
    return build_program(run, build_mesh(run.parallel, jax.devices()[:1] if layout is None else None))


def single(family, **model):
    """Parameters changed from their symmetric initial values, with their loss and gradients on one device."""
    return _single(family, json.dumps(model or APART[family]))


@functools.cache
def _single(family, model):
    one = program(family, model=json.loads(model))
    params = moved(one)
    return params, results(one, params)


def moved(on):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape), on.abstract_state.params)


def assert_equal_results(got, expected, family="v1"):
    # The softmax of jax.nn.dot_product_attention is always float32.
    loss_tolerance, tolerance = (1e-9, 1e-8) if family == "llama" else (1e-12, 1e-10)
    np.testing.assert_allclose(got[0], expected[0], rtol=loss_tolerance)
    assert got[1].keys() == expected[1].keys()
    for path, gradient in got[1].items():
        np.testing.assert_allclose(gradient, expected[1][path], atol=tolerance, err_msg=path)
