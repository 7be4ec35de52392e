"""What JAX knows of the other processes, and how it keeps programs: what has no public name there. A JAX that moves it
breaks this module alone."""

from __future__ import annotations

from typing import Any

import jax
from jax._src import compilation_cache, distributed

PREEMPTION_SERVICE = "jax_enable_preemption_service"
"""JAX's setting that has SIGTERM only noted down, for a program to ask about."""


def leave_sigterm_alone() -> None:
    """Keep JAX from taking SIGTERM, before the processes meet."""
    if PREEMPTION_SERVICE in jax.config.values:
        jax.config.update(PREEMPTION_SERVICE, False)


def process_id() -> int:
    """Number of this process. Starts no device, unlike `jax.process_index`."""
    return distributed.global_state.process_id


def num_processes() -> int:
    """How many have met. Starts no device, unlike `jax.process_count`."""
    return distributed.global_state.num_processes if _store() is not None else 1


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
    return distributed.global_state.client


def use_cache(store: Any) -> None:
    """Have JAX keep compiled programs in a store, which has `get`, `put` and `_path`; None: in files of its own, if its
    setting names a folder."""
    compilation_cache.reset_cache()
    compilation_cache._cache = store


def is_whole_program(value: bytes) -> bool:
    """Whether this is a compiled program as JAX keeps it."""
    try:
        return len(compilation_cache.decompress_executable(value)) > 4
    except Exception:  # its own kind for each way of compression
        return False
