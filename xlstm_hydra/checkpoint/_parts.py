"""Conversion of the arrays on disk (leaves) to the parameters of this package, a few arrays at a time.

Each format describes its conversion as a list of `Part`s: groups of leaves, and the parameters that they are converted
to. This module contains the common rules: every leaf is used exactly once and must have the expected shape, and the
blocks may be stacked (scanned) or separate, both on disk and in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xlstm_hydra.configs import ModelConfig, ParallelConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig
from xlstm_hydra.models import list_parameters
from xlstm_hydra.parallel import LAYERS, Parameter
from xlstm_hydra.problems import ConfigError, Problem, either

from ._leaves import Leaves, Shape

BLOCKS = "blocks"
"""Name of the blocks in our tree: `blocks.x` if they are scanned; otherwise `blocks_0.x`, `blocks_1.x` etc."""
_LISTED = 3
"""Maximum number of leaves listed in an error."""


class NotOurs(Exception):
    """Error for leaves whose values our parameters cannot represent. The message completes a sentence that starts with
    the names of the leaves."""


@dataclass(frozen=True)
class Part:
    """A group of leaves, and the parameters that they are converted to.

    In a part of one block, paths are relative to the block. `join` counts array axes from the end, so it also works on
    stacked blocks.
    """

    into: tuple[str, ...]
    """Paths of the parameters."""

    leaves: Mapping[str, Shape]
    """Shape of each leaf by path."""

    join: Callable[..., Sequence[np.ndarray]] = lambda *arrays: arrays
    """Function that converts the arrays of the leaves, in the order of `leaves`, to the parameters, in the order of
    `into`."""


def config_of(model: ModelConfig) -> Any:
    """Return the config of the model class. Its fields depend on the model family."""
    return model.model_config


def parameters_of(model: ModelConfig) -> list[Parameter]:
    """Return the parameters of a model. Its layout is ignored, because it may name modules of another program."""
    return list_parameters(replace(model, parallel=ParallelConfig()))


def outer_and_block_parameters(model: ModelConfig) -> tuple[list[Parameter], list[Parameter]]:
    """Return the parameters outside the blocks, and the parameters of one block with paths relative to the block."""
    outer, block = [], []
    for parameter in parameters_of(replace(model, model_config=replace(config_of(model), scan_blocks=True))):
        stem, _, rest = parameter.path.partition(".")
        if stem == BLOCKS and parameter.names[:1] == (LAYERS,):
            block.append(replace(parameter, path=rest, shape=parameter.shape[1:], names=parameter.names[1:]))
        else:
            outer.append(parameter)
    return outer, block


def all_blocks(part: Part, names: str | Sequence[str], layers: int) -> Part:
    """Extend a part of one block to a part of all blocks.

    Args:
        part: the part of one block.
        names: path prefixes on disk: one prefix for stacked blocks, or one prefix per block.
        layers: the number of blocks.
    """
    into = tuple(f"{BLOCKS}.{path}" for path in part.into)
    if isinstance(names, str):
        return Part(into, {f"{names}.{path}": (layers, *shape) for path, shape in part.leaves.items()}, part.join)

    def join(*arrays: np.ndarray) -> list[np.ndarray]:
        size = len(part.leaves)
        blocks = [part.join(*arrays[first : first + size]) for first in range(0, len(arrays), size)]
        return [np.stack(same) for same in zip(*blocks, strict=True)]

    return Part(into, {f"{name}.{path}": shape for name in names for path, shape in part.leaves.items()}, join)


def own_parts(model: ModelConfig, leaves: Mapping[str, Shape]) -> list[Part]:
    """Return the parts of a checkpoint of this package. If all blocks are of one kind, they may be stacked or separate
    on disk."""
    config = config_of(model)
    if not (isinstance(config, LanguageModelConfig) and config.scan_period() == 1):
        return [Part((parameter.path,), {parameter.path: parameter.shape}) for parameter in parameters_of(model)]
    outer, block = outer_and_block_parameters(model)
    scanned = any(path.startswith(f"{BLOCKS}.") for path in leaves)
    names = BLOCKS if scanned else [f"{BLOCKS}_{index}" for index in range(config.num_blocks)]
    parts = [Part((parameter.path,), {parameter.path: parameter.shape}) for parameter in outer]
    return parts + [all_blocks(Part((p.path,), {p.path: p.shape}), names, config.num_blocks) for p in block]


def differing(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """Return the sorted paths of arrays that are only in `expected` or only in `found`, or have different shapes."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def refuse_misfits(parts: Sequence[Part], leaves: Leaves) -> None:
    """Check that every leaf exists, has the expected shape, and is used.

    Raises:
        ConfigError: leaves differ. The error lists the first ones with their paths on disk.
    """
    expected = {path: shape for part in parts for path, shape in part.leaves.items()}
    assert len(expected) == sum(len(part.leaves) for part in parts), "a leaf is used twice"
    wrong = []
    for path in differing(expected, leaves.shapes):
        found, wanted = leaves.shapes.get(path), expected.get(path)
        wrong.append(f"{leaves.name(path)}: expected {wanted or 'no array'}, got {found or 'no array'}")
    if wrong:
        more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        text = f"its parameters do not match the model: {'; '.join(wrong[:_LISTED])}{more}"
        raise ConfigError([Problem({}, text, "Choose the model that the checkpoint was saved with.")])


def assemble(parts: Sequence[Part], leaves: Leaves, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the parameters with their paths, as float32 arrays. Only the leaves of one part are in memory at a time.

    Args:
        parts: the conversion.
        leaves: the arrays on disk.
        wanted: paths of the parameters of the model. A stacked parameter that is not among them is split into blocks.

    Raises:
        ConfigError: our parameters cannot represent the values of the leaves.
    """
    for part in parts:
        for path, array in zip(part.into, _join(part, leaves), strict=True):
            array = np.asarray(array, np.float32)
            if path in wanted:
                yield path, array
            else:
                rest = path.removeprefix(f"{BLOCKS}.")
                yield from ((f"{BLOCKS}_{index}.{rest}", block) for index, block in enumerate(array))


def _join(part: Part, leaves: Leaves) -> Sequence[np.ndarray]:
    try:
        return part.join(*leaves.read(list(part.leaves)))
    except NotOurs as error:
        names = either(map(leaves.name, part.leaves))
        raise ConfigError([Problem({}, f"{names} {error}")]) from None
