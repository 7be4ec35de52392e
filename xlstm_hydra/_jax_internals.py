"""JAX's private modules, and what its versions name differently.

Traced programs are read in `plan/_jaxpr.py`, lowered ones in `parallel/_collectives.py`; everything else that JAX does
not promise to keep is read here. Modules are imported where they are used: a JAX that moves one breaks only what needs
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

CUDNN_VERSION = 91000
"""The cuDNN version assumed on a machine without cuDNN: one that has every kernel that JAX can call."""


def backends_are_initialized() -> bool:
    """True if this process has started its devices."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def clear_backends() -> None:
    """Release the devices of this process, so that it can start others."""
    from jax.extend import backend

    backend.clear_backends()


def options_for_equal_bits(platform: str) -> dict[str, Any]:
    """Return options of the compiler with which a function of single elements gives the same bits however an array is
    split over devices.

    Since JAX 0.11, XLA on CPU rounds `erf_inv` and `log1p` differently in vectors and in the elements that are left
    behind the last whole vector, of which there are others in each part of an array. Without vectors, which takes
    three times as long, all are equal.
    """
    is_needed = platform == "cpu" and jax.__version_info__ >= (0, 11)
    return {"xla_cpu_prefer_vector_width": 32} if is_needed else {}


def distributed_state() -> Any:
    """Return what `jax.distributed` knows: `process_id`, `num_processes`, and `client`, that of the key-value store of
    process 0, which is None before the processes have met."""
    from jax._src import distributed

    return distributed.global_state


def use_cache(store: Any) -> None:
    """Make JAX keep compiled programs in a store with `get`, `put` and `_path`. None: in files of its own, if its
    setting names a folder."""
    from jax._src import compilation_cache

    compilation_cache.reset_cache()
    compilation_cache._cache = store


def is_whole_program(value: bytes) -> bool:
    """True if this is a compiled program as JAX's cache keeps it."""
    from jax._src import compilation_cache

    decompress = compilation_cache.decompress_executable
    try:
        return len(decompress(value)) > 4
    except Exception:  # its own kind for each way of compression
        return False


def varying_axes(x: Any) -> frozenset[str]:
    """Names of the mesh axes over which a value inside `shard_map` may differ."""
    aval: Any = jax.typeof(x)
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying  # JAX 0.10 | newer


@contextmanager
def cudnn_assumed() -> Iterator[None]:
    """Let JAX trace attention by cuDNN on a machine without cuDNN."""
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
    """The array axis of the keys that is time, in a layout of attention by cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    return 1 if layout == cudnn.AttentionLayout.BTNH.value else 2
