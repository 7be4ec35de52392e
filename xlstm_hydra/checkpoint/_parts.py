"""From the leaves of a parameter tree on disk to our parameters, a few at a time.

A format says in a list of `Part`s which leaves become which parameters of ours. What is common to all formats is here:
that every leaf is used exactly once and has the shape it must have, and that the stack of blocks may be one array or
many on either side.
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
"""Name of the stack of blocks in our tree: `blocks.x` where it is scanned, `blocks_0.x`, `blocks_1.x` elsewhere."""
_LISTED = 3
"""Leaves that an error names before it counts the rest."""


class NotOurs(Exception):
    """Leaves hold values that no parameters of ours mean the same as; how it goes on after their names."""


@dataclass(frozen=True)
class Part:
    """Leaves that belong together, and the parameters that they become.

    For one block, paths begin below it, and `join` counts array axes from the end, so that it works on a stack too.
    """

    into: tuple[str, ...]
    """Paths of our parameters."""

    leaves: Mapping[str, Shape]
    """Path and shape of the leaves."""

    join: Callable[..., Sequence[np.ndarray]] = lambda *arrays: arrays
    """The leaves, in this order, -> our parameters, in theirs."""


def config_of(model: ModelConfig) -> Any:
    """The config of the model's class, whose family decides what fields it has."""
    return model.model_config


def parameters_of(model: ModelConfig) -> list[Parameter]:
    """Its parameters, whatever the layout: one from elsewhere may name modules that are not ours."""
    return list_parameters(replace(model, parallel=ParallelConfig()))


def outer_and_block_parameters(model: ModelConfig) -> tuple[list[Parameter], list[Parameter]]:
    """Our parameters outside the stack of blocks, and those of one block, with paths that begin below it."""
    outer, block = [], []
    for parameter in parameters_of(replace(model, model_config=replace(config_of(model), scan_blocks=True))):
        stem, _, rest = parameter.path.partition(".")
        if stem == BLOCKS and parameter.names[:1] == (LAYERS,):
            block.append(replace(parameter, path=rest, shape=parameter.shape[1:], names=parameter.names[1:]))
        else:
            outer.append(parameter)
    return outer, block


def all_blocks(part: Part, names: str | Sequence[str], layers: int) -> Part:
    """A part of one block as one of all of them.

    Args:
        part: of one block.
        names: what stands before its paths on disk: one name for a stack, or a name for each block.
        layers: number of blocks.
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
    """Our own tree, whichever way it has its blocks, if these are all alike."""
    config = config_of(model)
    if not (isinstance(config, LanguageModelConfig) and config.scan_period() == 1):
        return [Part((parameter.path,), {parameter.path: parameter.shape}) for parameter in parameters_of(model)]
    outer, block = outer_and_block_parameters(model)
    scanned = any(path.startswith(f"{BLOCKS}.") for path in leaves)
    names = BLOCKS if scanned else [f"{BLOCKS}_{index}" for index in range(config.num_blocks)]
    parts = [Part((parameter.path,), {parameter.path: parameter.shape}) for parameter in outer]
    return parts + [all_blocks(Part((p.path,), {p.path: p.shape}), names, config.num_blocks) for p in block]


def differing(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """The paths of arrays that are on one side only, or have another shape there."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def refuse_misfits(parts: Sequence[Part], leaves: Leaves) -> None:
    """Make sure that every leaf is there, has the right shape, and is used.

    Raises:
        ConfigError: naming the leaves for which that is not so, as they are called on disk.
    """
    expected = {path: shape for part in parts for path, shape in part.leaves.items()}
    assert len(expected) == sum(len(part.leaves) for part in parts), "a leaf is used twice"
    wrong = []
    for path in differing(expected, leaves.shapes):
        found, wanted = leaves.shapes.get(path), expected.get(path)
        wrong.append(f"{leaves.name(path)}: expected {wanted or 'nothing'}, found {found or 'nothing'}")
    if wrong:
        more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        text = f"its parameters are not those of this model: {'; '.join(wrong[:_LISTED])}{more}"
        raise ConfigError([Problem({}, text, "Choose the model that it was saved with.")])


def assemble(parts: Sequence[Part], leaves: Leaves, wanted: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters by path, as float32 arrays. The leaves of one part are in memory at a time.

    Args:
        parts: how they are made.
        leaves: what they are made from.
        wanted: paths of the parameters: where one in a stack of blocks is not among them, those of its blocks are.

    Raises:
        ConfigError: leaves hold values that our parameters cannot have.
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
