"""Composing without a command line."""

import hydra
import pytest

from xlstm_hydra.hydra import VERSION_BASE


@pytest.fixture
def compose():
    """Function that composes our config with overrides, as the command does."""
    with hydra.initialize(config_path=None, **VERSION_BASE):
        yield lambda *overrides: hydra.compose("config", overrides=list(overrides))
