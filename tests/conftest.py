"""Eight simulated CPU devices for everyone. JAX is imported by the tests that need it, not here."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def run_config():
    """Makes a small `RunConfig` from changes to its groups, as `load` would: `run_config(parallel={...},
    model={...})`."""
    from tiny import tiny_run

    return tiny_run
