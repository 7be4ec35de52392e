"""Selection of the devices that JAX uses in this process: the devices of a run, simulated devices, or only the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax

from xlstm_hydra._jax_internals import backends_are_initialized, clear_backends
from xlstm_hydra.configs import RunConfig
from xlstm_hydra.problems import ConfigError, Problem

from ._processes import join

_real: dict[str, object] = {}
"""Original values of the JAX settings that runs in this process have changed."""


def start_devices(run: RunConfig) -> None:
    """Connect the processes of a run, initialize the devices, and check that the config fits the devices. All processes
    of the run must call this function.

    Raises:
        ConfigError: JAX cannot initialize the devices, or the config does not fit the number or the platform of the
            devices. The error lists all violated rules.
    """
    join(run.distributed)
    wanted: dict[str, object] = {}
    if run.trainer.simulated_devices is not None:
        wanted |= _simulated(run.trainer.simulated_devices)
    if run.distributed.local_device_ids is not None:
        ids = ",".join(map(str, run.distributed.local_device_ids))
        wanted |= {"jax_cuda_visible_devices": ids, "jax_rocm_visible_devices": ids}
    _change(wanted)
    jax.config.update("jax_debug_nans", run.trainer.debug_nans)
    if problems := [*run.device_rules(_device_count()), *run.platform_rules(jax.default_backend())]:
        raise ConfigError(problems)


def _device_count() -> int:
    """Initialize the devices, and return the number of devices in all processes.

    Raises:
        ConfigError: JAX cannot initialize the devices.
    """
    try:
        return jax.device_count()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no plugin provides JAX_PLATFORMS
        reason = str(error).partition("\n")[0].rstrip(".") or "there is no such device, or its plugin is not installed"
        platforms = jax.config.values["jax_platforms"]
        fix = "JAX_PLATFORMS selects the devices that JAX uses, for example JAX_PLATFORMS=cpu."
        raise ConfigError([Problem({"JAX_PLATFORMS": platforms}, f"JAX cannot start: {reason}", fix)]) from error


def simulate_devices(number: int) -> None:
    """Make JAX use `number` simulated CPU devices, and no other devices."""
    _change(_simulated(number))


@contextmanager
def no_accelerator() -> Iterator[None]:
    """Context manager in which JAX uses only the CPU, for tracing. Tracing creates a few constants, for which JAX would
    otherwise reserve GPU memory. Afterwards, JAX can use the previous devices again."""
    before, had_devices = jax.config.values["jax_platforms"], backends_are_initialized()
    if before == "cpu" and had_devices:
        yield
        return
    jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)
        clear_backends()


def _simulated(number: int) -> dict[str, object]:
    return {"jax_platforms": "cpu", "jax_num_cpu_devices": number}


def _change(wanted: Mapping[str, object]) -> None:
    """Change the JAX settings in `wanted`, and restore all other settings that earlier runs changed."""
    for name in wanted:
        _real.setdefault(name, jax.config.values[name])
    _set({**_real, **wanted})


def _set(wanted: Mapping[str, object]) -> None:
    """Change JAX settings, even if an earlier job of the same sweep has already initialized the devices."""
    if all(jax.config.values[name] == value for name, value in wanted.items()):
        return
    if jax.distributed.is_initialized() and backends_are_initialized():
        rule = "the devices cannot be changed after the processes have connected"
        raise ConfigError([Problem({"trainer.simulated_devices": wanted.get("jax_num_cpu_devices")}, rule)])
    clear_backends()
    for name, value in wanted.items():
        jax.config.update(name, value)
