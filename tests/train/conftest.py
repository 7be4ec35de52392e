import jax
import pytest


@pytest.fixture
def float64():
    """Arrays are float64 unless told otherwise."""
    with jax.enable_x64(True):
        yield
