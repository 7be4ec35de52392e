"""Number of this process, number of processes, and the key-value store that process 0 hosts for all processes."""

from __future__ import annotations

from typing import Any

import jax

from xlstm_hydra._jax_internals import distributed_state

PREEMPTION_SERVICE = "jax_enable_preemption_service"
"""JAX setting with which SIGTERM does not end the process, but sets a flag that the program can query."""


def leave_sigterm_alone() -> None:
    """Prevent JAX from handling SIGTERM. Must be called before the processes connect."""
    if PREEMPTION_SERVICE in jax.config.values:
        jax.config.update(PREEMPTION_SERVICE, False)


def process_id() -> int:
    """Return the number of this process. Does not initialize the devices, unlike `jax.process_index`."""
    return distributed_state().process_id


def num_processes() -> int:
    """Return the number of connected processes. Does not initialize the devices, unlike `jax.process_count`."""
    return distributed_state().num_processes if _store() is not None else 1


def publish(key: str, text: str) -> None:
    """Publish a text to all processes, under a new key.

    Raises:
        RuntimeError: the key already exists, or process 0 has exited.
    """
    _store().key_value_set(key, text)


def published(key: str) -> str | None:
    """Return the text published under a key; None if the key does not exist, or process 0 has exited."""
    try:
        return _store().key_value_try_get(key)
    except RuntimeError:
        return None


def wait_for(key: str, seconds: float) -> str:
    """Wait until a text is published under a key, and return the text.

    Raises:
        RuntimeError: the key was not published within `seconds`.
    """
    return _store().blocking_key_value_get(key, round(1000 * seconds))


def wait_for_all(name: str, seconds: float) -> None:
    """Wait until all processes have reached the barrier `name`.

    Raises:
        RuntimeError: a process has not reached the barrier within `seconds`, or has exited.
    """
    _store().wait_at_barrier(name, round(1000 * seconds))


def _store() -> Any:
    """Return the client of the key-value store; None if the processes are not connected."""
    return distributed_state().client
