"""Hydra structured configs for training xLSTM language models in JAX/Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlstm_hydra.checkpoint import load_checkpoint as load_checkpoint


def __getattr__(name: str) -> Any:
    """Load `load_checkpoint`, which imports JAX, and `__version__`, which takes 10 % of the start-up time, on first
    use."""
    if name == "load_checkpoint":
        from xlstm_hydra.checkpoint import load_checkpoint

        return load_checkpoint
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xlstm-hydra")
    except PackageNotFoundError:  # a bare checkout on the path
        return "0+unknown"
