"""Access to JAX's private modules and to names that differ between its versions.

`plan/_jaxpr.py` reads traced programs and `parallel/_collectives.py` lowered ones. All other uses of private JAX
interfaces are in this module. Each function imports what it needs, so a module that moves in a new JAX version breaks
only that function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

CUDNN_VERSION = 91000
"""The cuDNN version assumed on a machine without cuDNN: recent enough for every kernel that JAX can call."""


def backends_are_initialized() -> bool:
    """True if JAX has initialised the devices of this process."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def clear_backends() -> None:
    """Release the devices of this process, so that JAX can be initialised again with others."""
    from jax.extend import backend

    backend.clear_backends()


def options_for_equal_bits(platform: str) -> dict[str, Any]:
    """Return compiler options that make elementwise functions bit-identical however an array is sharded.

    Since JAX 0.11, XLA on CPU rounds `erf_inv` and `log1p` differently in the vectorised loop and in the remainder
    after it, and sharding changes which elements are in the remainder. Without vectorisation, which takes three times
    as long, all elements are rounded alike.
    """
    is_needed = platform == "cpu" and jax.__version_info__ >= (0, 11)
    return {"xla_cpu_prefer_vector_width": 32} if is_needed else {}


def distributed_state() -> Any:
    """Return the state of `jax.distributed`: `process_id`, `num_processes`, and `client` for the key-value store of
    process 0 (None until the processes are connected)."""
    from jax._src import distributed

    return distributed.global_state


def use_cache(store: Any) -> None:
    """Make JAX cache compiled programs in a store with `get`, `put` and `_path`. None: use JAX's own files, if its
    setting names a folder."""
    from jax._src import compilation_cache

    compilation_cache.reset_cache()
    compilation_cache._cache = store


def is_whole_program(value: bytes) -> bool:
    """True if this is a complete compiled program in the format of JAX's cache."""
    from jax._src import compilation_cache

    decompress = compilation_cache.decompress_executable
    try:
        return len(decompress(value)) > 4
    except Exception:  # every compression library raises its own class
        return False


def varying_axes(x: Any) -> frozenset[str]:
    """Return the names of the mesh axes along which a value inside `shard_map` may differ."""
    aval: Any = jax.typeof(x)
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying  # JAX 0.10 | newer


@contextmanager
def cudnn_assumed() -> Iterator[None]:
    """Let JAX trace cuDNN attention on a machine without cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    checked = cudnn.check_cudnn_version

    def version() -> int:
        try:
            return checked()
        except RuntimeError:
            return CUDNN_VERSION

    cudnn.check_cudnn_version = version
    try:
        yield
    finally:
        cudnn.check_cudnn_version = checked


def cudnn_time_axis(layout: int) -> int:
    """Return the time axis of the keys array in a layout of cuDNN attention."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    return 1 if layout == cudnn.AttentionLayout.BTNH.value else 2
