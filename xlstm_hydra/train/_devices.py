"""Which devices a run gets."""

from __future__ import annotations

import jax
from jax.extend.backend import clear_backends

from xlstm_hydra.configs import ConfigError, RunConfig


def start_devices(run: RunConfig) -> None:
    """Set up the devices that the run asks for and check that its layout fits them.

    Raises:
        ConfigError: with every rule between the config and the number of devices that is broken.
    """
    wanted = run.trainer.simulated_devices
    if wanted is not None and not _has_simulated(wanted):
        clear_backends()  # an earlier job of the same sweep may have had another number
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", wanted)
    jax.config.update("jax_debug_nans", run.trainer.debug_nans)
    if problems := list(run.device_rules(jax.device_count())):
        raise ConfigError(problems)


def _has_simulated(wanted: int) -> bool:
    from jax._src import xla_bridge

    if not xla_bridge.backends_are_initialized():
        return False
    return jax.default_backend() == "cpu" and jax.device_count() == wanted
