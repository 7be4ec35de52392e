"""Processes of a run, and the key-value store of process 0."""

from __future__ import annotations

from typing import Any

import jax

from xlstm_hydra._jax_internals import distributed_state

PREEMPTION_SERVICE = "jax_enable_preemption_service"
"""Setting of JAX that makes SIGTERM only set a flag for the program to query."""


def leave_sigterm_alone() -> None:
    """Prevent JAX from handling SIGTERM. Must be called before the processes connect."""
    if PREEMPTION_SERVICE in jax.config.values:
        jax.config.update(PREEMPTION_SERVICE, False)


def process_id() -> int:
    """Number of this process. Starts no device, unlike `jax.process_index`."""
    return distributed_state().process_id


def num_processes() -> int:
    """Number of connected processes. Starts no device, unlike `jax.process_count`."""
    return distributed_state().num_processes if _store() is not None else 1


def publish(key: str, text: str) -> None:
    """Publish a text to all processes.

    Raises:
        RuntimeError: the key already exists, or process 0 is gone.
    """
    _store().key_value_set(key, text)


def published(key: str) -> str | None:
    """Return the text published under a key; None if there is none or process 0 is gone."""
    try:
        return _store().key_value_try_get(key)
    except RuntimeError:
        return None


def wait_for(key: str, seconds: float) -> str:
    """Wait for the text published under a key, and return it.

    Raises:
        RuntimeError: the key was not published within `seconds`.
    """
    return _store().blocking_key_value_get(key, round(1000 * seconds))


def wait_for_all(name: str, seconds: float) -> None:
    """Wait until all processes have reached the barrier of this name.

    Raises:
        RuntimeError: a process has not reached it within `seconds`, or is gone.
    """
    _store().wait_at_barrier(name, round(1000 * seconds))


def _store() -> Any:
    """The client of the key-value store."""
    return distributed_state().client
