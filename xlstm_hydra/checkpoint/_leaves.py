"""Parameter trees on disk, as Orbax checkpoints or as Hugging Face safetensors files. Arrays are read a few at a time,
into host memory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from xlstm_hydra.formats import LFS_POINTER, is_lfs_pointer
from xlstm_hydra.problems import ConfigError, Problem
from xlstm_hydra.runs import missing_weights

from ._faults import reading

Shape = tuple[int, ...]

_BOX = "value"
"""Last name in the path of an array that was saved in a Flax metadata box (`flax.linen.Partitioned`)."""

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
"""File names of a Hugging Face model: the single file, or the index of several files."""
_DTYPES = ("F64", "F32", "F16", "BF16")
_BYTES_PER_FILE = 4 * 2**30
_AGAIN = "The file may be incomplete; download it again."


class Leaves(Protocol):
    """The arrays of a parameter tree on disk."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of each array by path."""
        ...

    def read(self, paths: Sequence[str]) -> list[np.ndarray]:
        """Read the arrays at these paths, in this order."""
        ...

    def name(self, path: str) -> str:
        """Return the path as written on disk."""
        ...


class OrbaxLeaves:
    """The arrays of one item of an Orbax checkpoint. Paths omit Flax metadata boxes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with reading("parameters", folder):
            saved: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(folder))
        leaves = {_names(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(saved.tree)[0]}
        self._on_disk = {".".join(names[:-1] if names[-1] == _BOX else names): names for names in leaves}
        self.shapes: dict[str, Shape] = {path: tuple(leaves[names].shape) for path, names in self._on_disk.items()}

    def read(self, paths: Sequence[str]) -> list[np.ndarray]:
        """Read the arrays at these paths, in this order."""
        wanted = {self._on_disk[path]: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths}
        tree = traverse_util.unflatten_dict(wanted)
        with reading("parameters", self._folder), ocp.PyTreeCheckpointer() as reader:
            args = ocp.args.PyTreeRestore(item=tree, restore_args=tree, partial_restore=True)
            found: Any = traverse_util.flatten_dict(reader.restore(self._folder, args=args))
        return [found[self._on_disk[path]] for path in paths]

    def name(self, path: str) -> str:
        """Return the path as written on disk."""
        return ".".join(self._on_disk.get(path, (path,)))


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


class SafetensorsLeaves:
    """The arrays of a Hugging Face model."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        for file in _files(folder):
            for name, shape in _shapes(file).items():
                self._files[name], self.shapes[name] = file, shape

    def read(self, paths: Sequence[str]) -> list[np.ndarray]:
        """Read the arrays at these paths, in this order."""
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return [np.asarray(_open(self._files[path]).get_tensor(path)) for path in paths]

    def name(self, path: str) -> str:
        """Return the path, which is the name on disk."""
        return path


def write_safetensors(folder: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write arrays as one safetensors file, or as several files of at most 4 GiB with an index. Only the arrays of one
    file are in memory at a time.

    Raises:
        OSError: a file cannot be written.
    """
    library = _library("safetensors")
    where: dict[str, str] = {}
    part: dict[str, np.ndarray] = {}

    def write(file: str) -> None:
        _save(library, part, folder / file)
        where.update(dict.fromkeys(part, file))
        part.clear()

    for name, array in arrays:
        if part and sum(one.nbytes for one in part.values()) + array.nbytes > _BYTES_PER_FILE:
            write(f"model-{len(set(where.values())) + 1:05}.safetensors")
        part[name] = np.ascontiguousarray(array)
    if not where:
        write(MODEL)
        return
    write(f"model-{len(set(where.values())) + 1:05}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / MODEL).is_file():
            text, fix = missing_weights(folder)
            raise ConfigError([Problem.about("", f"{folder} {text}", fix)])
        return [folder / MODEL]
    files = _listed(index)
    if missing := [file.name for file in files if not file.is_file()]:
        text = f"{index}: {len(missing)} of the {len(files)} listed files are missing: {', '.join(missing[:8])}"
        raise ConfigError([Problem.about("", text, "Download them again.")])
    return files


def _listed(index: Path) -> list[Path]:
    """Return the paths of the files listed in an index."""
    try:
        text = index.read_text(encoding="utf-8")
        if is_lfs_pointer(text):
            raise _unreadable(index, LFS_POINTER)
        names: Any = json.loads(text)["weight_map"].values()
        return sorted({index.with_name(Path(name).name) for name in names})
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(index, error) from None


def _shapes(file: Path) -> dict[str, Shape]:
    opened = _open(file)
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    for name, array in slices.items():
        if array.get_dtype() not in _DTYPES:
            text = f"{name} has dtype {array.get_dtype()}; supported: {', '.join(_DTYPES)}"
            raise _unreadable(file, text)
    return {name: tuple(array.get_shape()) for name, array in slices.items()}


def _open(file: Path) -> Any:
    library = _library("safetensors")
    try:
        return library.safe_open(file, framework="flax")
    except library.SafetensorError as error:
        raise _unreadable(file, LFS_POINTER if _is_lfs_pointer(file) else f"{error}. {_AGAIN}") from None
    except OSError as error:
        raise _unreadable(file, error) from None


def _save(library: Any, arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Write one file. Raise operating system errors, which the library reports as text with the errno, as an
    `OSError`."""
    try:
        _library("safetensors.numpy").save_file(arrays, file, metadata={"format": "pt"})
    except library.SafetensorError as error:
        if (code := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(file)) from error


def _is_lfs_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return is_lfs_pointer(opened.read(100))


def _library(name: str) -> Any:
    import importlib  # the library is an optional dependency

    try:
        return importlib.import_module(name)
    except ImportError:
        text = "Hugging Face models require the package safetensors"
        raise ConfigError([Problem({}, text, "Run pip install 'xlstm-hydra[hf]'.")]) from None


def _unreadable(file: Path, error: Exception | str) -> ConfigError:
    return ConfigError([Problem.about("", f"{file}: cannot be read: {error}")])
