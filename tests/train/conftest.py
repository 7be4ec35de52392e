import jax
import pytest


@pytest.fixture
def float64():
    """Arrays are float64 by default."""
    with jax.enable_x64(True):
        yield
