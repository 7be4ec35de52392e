"""Files of named arrays in the safetensors format: the length of a JSON header, the header, the arrays as in memory.

They are read and written one array at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from xlstm_hydra.configs import ConfigError, Problem

from ._parts import Shape

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
"""File names that Hugging Face gives to a model: one file, or the list of its many."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsLeaves:
    """The arrays of a folder with a model of Hugging Face."""

    def __init__(self, folder: Path) -> None:
        self._entries = {name: (file, *entry) for file in _files(folder) for name, entry in _entries(file).items()}
        self.shapes: dict[str, Shape] = {name: shape for name, (_, _, shape, _) in self._entries.items()}

    def read(self, paths: Sequence[str]) -> list[np.ndarray]:
        """Some of them, in this order."""
        entries = map(self._entries.__getitem__, paths)
        return [np.array(np.memmap(file, dtype, "r", start, shape)) for file, start, shape, dtype in entries]

    def name(self, path: str) -> str:
        """A path as it stands on disk."""
        return path


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        return [folder / MODEL]
    try:
        names: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({folder / Path(name).name for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(index, error) from None


def _unreadable(file: Path, error: Exception) -> ConfigError:
    return ConfigError([Problem.about(str(file), f"cannot be read: {error}")])


def _entries(file: Path) -> dict[str, tuple[int, Shape, np.dtype]]:
    """Where each array of a file begins, its shape and its type."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 0 < length <= size - 8:
                raise ValueError("it is cut off, or no safetensors file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return {name: _entry(entry, 8 + length, size) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(file, error) from None


def _entry(entry: Any, start: int, size: int) -> tuple[int, Shape, np.dtype]:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"an array has the type {entry['dtype']}, known are {', '.join(_DTYPES)}")
    dtype, shape, (begin, end) = jnp.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize or start + end > size:
        raise ValueError("it is cut off")
    return start + begin, shape, dtype


def write_safetensors(file: Path, shapes: Mapping[str, Shape], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write float32 arrays, in whatever order they come.

    Args:
        file: to write.
        shapes: of all of them, by name.
        arrays: name and value of each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, array in arrays:
            stream.seek(8 + len(text) + header[name]["data_offsets"][0])
            stream.write(np.ascontiguousarray(array, "<f4").data)
