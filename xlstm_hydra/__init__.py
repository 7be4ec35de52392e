"""Hydra structured configs for training xLSTM language models in JAX/Flax."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when asked for: `importlib.metadata` is a tenth of the start-up time."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xlstm-hydra")
    except PackageNotFoundError:  # a bare checkout on the path
        return "0+unknown"
