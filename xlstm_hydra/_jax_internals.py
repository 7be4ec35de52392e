"""Access to private JAX modules and to names that differ between JAX versions.

Two other modules depend on JAX internals: `plan/_jaxpr.py` reads traced programs, and `parallel/_collectives.py` reads
lowered programs. All other uses are here. Each function imports what it needs, so if a new JAX version moves a module,
only that function breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

CUDNN_VERSION = 91000
"""The cuDNN version assumed on a machine without cuDNN: recent enough for every kernel that JAX can call."""


def backends_are_initialized() -> bool:
    """True if JAX has initialized the devices of this process."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def clear_backends() -> None:
    """Release the devices of this process, so that JAX can be initialized again with other devices."""
    from jax.extend import backend

    backend.clear_backends()


def options_for_equal_bits(platform: str) -> dict[str, Any]:
    """Return compiler options that make elementwise functions bit-identical however an array is sharded.

    Since JAX 0.11, XLA on CPU rounds `erf_inv` and `log1p` differently in the vectorised loop and in the remainder
    loop, and sharding changes which elements are in the remainder. Disabling vectorisation makes these functions take
    three times as long, but rounds all elements the same way.
    """
    is_needed = platform == "cpu" and jax.__version_info__ >= (0, 11)
    return {"xla_cpu_prefer_vector_width": 32} if is_needed else {}


def distributed_state() -> Any:
    """Return the state of `jax.distributed`: `process_id`, `num_processes`, and `client` for the key-value store of
    process 0 (None until the processes are connected)."""
    from jax._src import distributed

    return distributed.global_state


def use_cache(store: Any) -> None:
    """Make JAX cache compiled programs in `store`, an object with `get`, `put` and `_path`. None: use JAX's own file
    cache, if JAX is configured with a cache folder."""
    from jax._src import compilation_cache

    compilation_cache.reset_cache()
    compilation_cache._cache = store


def is_whole_program(value: bytes) -> bool:
    """True if the bytes are a complete compiled program in the format of JAX's compilation cache."""
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
    """Return the index of the time axis of the key array in a cuDNN attention layout."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    return 1 if layout == cudnn.AttentionLayout.BTNH.value else 2
