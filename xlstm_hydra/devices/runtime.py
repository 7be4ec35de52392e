"""The other processes of a run, and the key-value store that process 0 keeps for all."""

from __future__ import annotations

from typing import Any

import jax

from xlstm_hydra._jax_internals import distributed_state

PREEMPTION_SERVICE = "jax_enable_preemption_service"
"""JAX's setting that has SIGTERM only noted down, for a program to ask about."""


def leave_sigterm_alone() -> None:
    """Keep JAX from taking SIGTERM, before the processes meet."""
    if PREEMPTION_SERVICE in jax.config.values:
        jax.config.update(PREEMPTION_SERVICE, False)


def process_id() -> int:
    """Number of this process. Starts no device, unlike `jax.process_index`."""
    return distributed_state().process_id


def num_processes() -> int:
    """How many have met. Starts no device, unlike `jax.process_count`."""
    return distributed_state().num_processes if _store() is not None else 1


def publish(key: str, text: str) -> None:
    """Put a text where all processes can read it.

    Raises:
        RuntimeError: there is one under this key already, or process 0 is gone.
    """
    _store().key_value_set(key, text)


def published(key: str) -> str | None:
    """What is under a key now; None too where process 0 is gone."""
    try:
        return _store().key_value_try_get(key)
    except RuntimeError:
        return None


def wait_for(key: str, seconds: float) -> str:
    """What is under a key, once it is there.

    Raises:
        RuntimeError: it has not come in time.
    """
    return _store().blocking_key_value_get(key, round(1000 * seconds))


def wait_for_all(name: str, seconds: float) -> None:
    """Return when all processes have come to the point of this name.

    Raises:
        RuntimeError: they have not in time, or one is gone.
    """
    _store().wait_at_barrier(name, round(1000 * seconds))


def _store() -> Any:
    """The client of the key-value store that process 0 keeps for all."""
    return distributed_state().client
