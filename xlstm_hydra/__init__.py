"""Hydra structured configs for training xLSTM language models in JAX/Flax."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("xlstm-hydra")
except PackageNotFoundError:  # a bare checkout on the path
    __version__ = "0+unknown"
