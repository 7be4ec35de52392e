"""Log messages before the first step and at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from xlstm_hydra._logging import log, log_fact
from xlstm_hydra._printable import short_path
from xlstm_hydra._table import in_bytes
from xlstm_hydra.configs import AUTO, RunConfig
from xlstm_hydra.configs.data import ByteDataConfig
from xlstm_hydra.configs.run import BYTES
from xlstm_hydra.data import Corpus
from xlstm_hydra.devices import is_first
from xlstm_hydra.parallel import axes_across_hosts, bubble_fraction, describe_mesh, parameter_totals
from xlstm_hydra.runs import StartingPoint, recorded_origin
from xlstm_hydra.step import Program

from ._log import bits
from ._planning import RunPlan
from ._resumed import Resumed


def announce_start(run: RunConfig, folder: Path, start: StartingPoint, resumed: Resumed | None) -> None:
    """Log why the run continues or starts from scratch. If the weights are random but the config is from a checkpoint,
    log that too."""
    if not is_first():
        return
    if start.is_own and run.checkpoint.restore != AUTO:
        log.info("SLURM restarted this job: the run continues in its own run folder")
    if resumed is not None:
        if unknown := resumed.record.unknown:
            log.warning("unknown fields of the checkpoint were ignored: %s", ", ".join(unknown))
    elif start.is_own:
        log.info("checkpoint.restore=auto: the run folder has no checkpoint, so the run starts from step 0")
    if start.checkpoint is None and start.weights is None and (origin := recorded_origin(folder)):
        text = "the config is from %s, but the weights are random. checkpoint.init_from=%s starts from its weights"
        log.info(f"{text}; resume=%s continues that run", origin, origin, origin)


def announce(program: Program, plan: RunPlan, facts: Iterable[tuple[str, str]], done: int = 0) -> None:
    """Log a summary of the run in an aligned block: the model, the layout, the plan, and further facts. Warn about
    settings that are probably not intended.

    Args:
        program: the compiled program of the run.
        plan: the plan of the run.
        facts: keys and texts of further lines; see `log_fact`.
        done: number of completed steps.
    """
    if not is_first():
        return
    for key, text in _layout_facts(program):
        log_fact(key, text)
    plan.log_prediction(done)
    for key, text in facts:
        log_fact(key, text)
    plan.log_details(program.run.logger.verbose)
    _warn_of_layout(program)
    _warn_of_unused_tokens(program.run)


def data_facts(corpus: Corpus, entropy: float) -> Iterator[tuple[str, str]]:
    """Yield the log lines for the number of training examples and the unigram entropy, given in bits per
    `corpus.unit`."""
    yield "data", f"{len(corpus):,} examples"
    yield "", f"unigram entropy {entropy * math.log(2):.4f} nats ({entropy:.3f} bits/{corpus.unit})"


def origin_facts(folder: Path, start: StartingPoint, resumed: Resumed | None) -> Iterator[tuple[str, str]]:
    """Yield the log lines for the run folder, and for the checkpoint that the run continues from or loads its initial
    parameters from."""
    yield "run", short_path(folder)
    if start.weights is not None:
        yield "weights", f"from {short_path(start.weights)}"
        yield "", "optimizer, step and data start from scratch"
    if resumed is not None:
        yield from resumed.facts()


def announce_result(best: tuple[float, int] | None, unit: str, folder: Path) -> None:
    """Log the last lines of a completed run: the lowest validation loss with its step, and the run folder."""
    if not is_first():
        return
    if best is not None:
        loss, step = best
        log_fact("best", f"validation loss {loss:.4f} ({bits(loss):.3f} bits/{unit}) at step {step:,}")
    log_fact("run", short_path(folder))


def _layout_facts(program: Program) -> Iterator[tuple[str, str]]:
    count, total, device = parameter_totals(program.placements)
    yield "model", f"{program.model.class_path().rpartition('.')[2]}, {count:,} parameters"
    yield "", in_bytes(total) if device == total else f"{in_bytes(total)}, {in_bytes(device)} on each device"
    yield "mesh", describe_mesh(program.mesh)
    if (axes := program.axes).pipeline is not None:
        idle = bubble_fraction(axes.stages, axes.microbatches)
        yield "pipeline", f"{axes.stages} stages, {axes.microbatches} microbatches, bubble {idle:.1%}"


def _warn_of_layout(program: Program) -> None:
    parallel, shape = program.run.parallel, program.mesh.shape
    sharded = any(placement.fsdp_axis is not None for placement in program.placements)
    if parallel.fsdp_modules and shape[parallel.fsdp_axis_name] == 1:
        log.info("parallel.fsdp_axis_size is 1 on this mesh: no parameter is sharded")
    if shape[parallel.fsdp_axis_name] > 1 and not sharded:
        text = "FSDP shards no parameter; parameters.txt gives the reason for each one"
        log.warning(f"{text}. Lower parallel.fsdp_min_weight_size?")
    if sharded and not parallel.remat:
        log.warning("without parallel.remat, every gathered parameter is kept in memory for the backward pass")
    tensor = parallel.model_axis_name
    if tensor in axes_across_hosts(program.mesh) and program.run.distributed.device_order is None:
        text = "mesh axis %s crosses hosts: every layer waits for the network. Lower parallel.model_axis_size?"
        log.warning(text, tensor)
    if shape[tensor] > 1 and not any(tensor in placement.spec for placement in program.placements):
        text = "tensor parallelism shards no parameter: the %d devices along mesh axis %s do the same computation"
        log.warning(text, shape[tensor], tensor)


def _warn_of_unused_tokens(run: RunConfig) -> None:
    config = run.model.model_config
    vocab = None if config is None else config.get("vocab_size")
    if isinstance(run.data, ByteDataConfig) and isinstance(vocab, int) and vocab > BYTES:
        text = "data.name=%s has only %d token ids, but model.vocab_size is %d: the other rows of the embedding and"
        log.warning(
            f"{text} of the LM head are never trained. Set model.vocab_size=%d?", run.data.name, BYTES, vocab, BYTES
        )
