"""Which devices a run gets."""

from __future__ import annotations

import jax
from jax.extend.backend import clear_backends

from xlstm_hydra.configs import ConfigError, Problem, RunConfig

_SETTINGS = ("jax_platforms", "jax_num_cpu_devices")
_real: dict[str, object] = {}
"""What the settings were before a run of this process simulated devices."""


def start_devices(run: RunConfig) -> None:
    """Set up the devices that the run asks for and check that its layout fits them.

    Raises:
        ConfigError: with every rule between the config and the number and kind of devices that is broken.
    """
    wanted = run.trainer.simulated_devices
    if wanted is not None:
        _real.update({name: getattr(jax.config, name) for name in _SETTINGS if name not in _real})
        _set("cpu", wanted)
    elif _real:
        _set(*_real.values())
    jax.config.update("jax_debug_nans", run.trainer.debug_nans)
    if jax.process_count() > 1:
        text = "training in several processes is not built yet"
        raise ConfigError([Problem({}, f"{text}; there are {jax.process_count()}", "Start one.")])
    if problems := [*run.device_rules(jax.device_count()), *run.platform_rules(jax.default_backend())]:
        raise ConfigError(problems)


def _set(*values: object) -> None:
    """Change the settings, also after an earlier job of the same sweep has started its devices."""
    wanted = dict(zip(_SETTINGS, values, strict=True))
    if all(getattr(jax.config, name) == value for name, value in wanted.items()):
        return
    clear_backends()
    for name, value in wanted.items():
        jax.config.update(name, value)
