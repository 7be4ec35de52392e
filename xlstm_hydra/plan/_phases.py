"""A traced program in three parts: its blocks forward, its blocks backward, and what is around them."""

from __future__ import annotations

from typing import Any

from xlstm_hydra.configs import RunConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig

from ._dataflow import Graph, Operation
from ._liveness import Moment, busiest_moments

PHASES = ("forward", "backward", "outside")
"""The parts of a program."""


def split(run: RunConfig, jaxpr: Any) -> dict[str, Any]:
    """The same program thrice, each time with one of its parts alone."""
    body = jaxpr.jaxpr
    mapped = next(eqn for eqn in body.eqns if eqn.primitive.name == "shard_map")
    inner = mapped.params["jaxpr"]
    length = _stack_length(run)
    loops = [eqn for eqn in inner.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == length]
    others = [eqn for eqn in inner.eqns if eqn not in loops]

    def only(eqns: list[Any]) -> Any:
        local = mapped.replace(params=mapped.params | {"jaxpr": inner.replace(eqns=eqns)})
        return jaxpr.replace(jaxpr=body.replace(eqns=[local]))

    return dict(zip(PHASES, (only(loops[:1]), only(loops[1:]), only(others)), strict=True))


def busiest_by_phase(run: RunConfig, graph: Graph) -> dict[str, Moment]:
    """The moment of each part when most bytes are in memory."""
    length = _stack_length(run)

    def phase(operation: Operation | None) -> str:
        if operation is None or operation.name != "scan" or operation.params["length"] != length:
            return "outside"
        return "backward" if operation.backward else "forward"

    return busiest_moments(graph, phase)


def _stack_length(run: RunConfig) -> int | None:
    """Rounds of the loop over the blocks; None where there is none."""
    config = run.model.model_config
    if not isinstance(config, LanguageModelConfig) or not config.scan_blocks:
        return None
    return config.num_blocks // config.scan_period()
