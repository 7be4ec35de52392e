"""Log messages before the first step of a run."""

from __future__ import annotations

from pathlib import Path

from xlstm_hydra._logging import log
from xlstm_hydra.configs import AUTO, RunConfig
from xlstm_hydra.configs.data import ByteDataConfig
from xlstm_hydra.configs.run import BYTES
from xlstm_hydra.devices import is_first
from xlstm_hydra.parallel import axes_across_hosts, bubble_fraction, describe_mesh, sharding_summary
from xlstm_hydra.runs import StartingPoint, recorded_origin
from xlstm_hydra.step import Program

from ._planning import RunPlan
from ._resumed import Resumed


def announce_start(run: RunConfig, folder: Path, start: StartingPoint, resumed: Resumed | None) -> None:
    """Log the checkpoint that the run continues from. If the weights are random but the config is from a checkpoint,
    log that too."""
    if start.is_own and run.checkpoint.restore != AUTO:
        log.info("SLURM restarted this job: the run continues in its own run folder")
    if resumed is not None:
        resumed.log_changes()
    elif start.is_own:
        log.info("checkpoint.restore=auto: the run folder has no checkpoint, so the run starts from step 0")
    if start.checkpoint is None and start.weights is None and (origin := recorded_origin(folder)):
        text = "the config is from %s, but the weights are random. checkpoint.init_from=%s starts from its weights"
        log.info(f"{text}; resume=%s continues that run", origin, origin, origin)


def announce(program: Program, plan: RunPlan, data: str) -> None:
    """Log the layout, the plan and the data of a run. Warn about settings that are probably not intended.

    Args:
        program: the compiled program of the run.
        plan: its plan.
        data: one line about the training data.
    """
    if not is_first():
        return
    parallel, shape = program.run.parallel, program.mesh.shape
    log.info("mesh: %s", describe_mesh(program.mesh))
    if (axes := program.axes).pipeline is not None:
        idle = bubble_fraction(axes.stages, axes.microbatches)
        log.info("pipeline: %d stages, %d microbatches, bubble %.1f%%", axes.stages, axes.microbatches, 100 * idle)
    log.info("%s", sharding_summary(program.placements))
    plan.log_prediction()
    log.info("%s", data)
    _warn_of_unused_tokens(program.run)
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
        text = "%s crosses hosts: every layer waits for the network. Lower parallel.model_axis_size?"
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
