"""The training loop, as a table of contents; the details are below it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from xlstm_hydra.checkpoint import Checkpoints, TrainState, find_checkpoint, read_metadata_text, restore, to_json
from xlstm_hydra.configs import ConfigError, Problem, RunConfig
from xlstm_hydra.data import Corpus, open_corpus, train_batches, validation_batches
from xlstm_hydra.hydra import resolve_classes
from xlstm_hydra.metadata import provenance, read_run, write_metadata
from xlstm_hydra.parallel import describe_mesh, report, summary

from ._devices import start_devices
from ._log import MetricLog, Stopwatch, bits, log
from ._program import Program, build_program


def train(run: RunConfig, folder: Path | str = ".", overrides: list[str] | None = None) -> float | None:
    """Train a run and save it in `folder`. Returns the last validation loss in nats, or None without validation.

    Raises:
        ConfigError: the run does not fit the devices, the data or the checkpoint that it continues from.
        FloatingPointError: a loss is not finite.
    """
    folder = Path(folder)
    start_devices(run)
    run = dataclasses.replace(run, model=resolve_classes(run.model))
    program = build_program(run)
    corpus, held_out = open_corpus(run.data, *_data_shape(run))
    batches = train_batches(corpus, run.data, run.trainer.batch_size, jax.process_index(), jax.process_count())
    state, batches = _first_state(program, batches)
    metadata = _record(program, folder, overrides)
    entropy = corpus.unigram_entropy()
    _announce(
        program, f"{len(corpus):,} examples; unigram entropy {entropy * math.log(2):.4f} nats ({entropy:.3f} bits)"
    )
    checkpoints = _open_checkpoints(run, folder, int(state.step))
    loop = _Loop(program, batches, _validation(program, held_out), checkpoints, metadata)
    try:
        with MetricLog(run.logger, folder, int(state.step), run.trainer.max_steps) as metric_log:
            loop.run(state, metric_log)
    finally:
        if checkpoints is not None:
            checkpoints.close()
    if loop.validation_loss is not None:
        log.info("%.3f bits per token, where token frequencies alone give %.3f", bits(loop.validation_loss), entropy)
    return loop.validation_loss


@dataclass
class _Loop:
    """Steps, and what happens between them."""

    program: Program
    batches: grain.DatasetIterator
    validation: list[Any]
    checkpoints: Checkpoints | None
    metadata: Mapping[str, Any]
    validation_loss: float | None = None

    def run(self, state: TrainState, metric_log: MetricLog) -> None:
        """From the state's step to the last one."""
        run = self.program.run
        tokens = run.trainer.batch_size * _data_shape(run)[0]
        stopwatch, pending = Stopwatch(), []
        last = run.trainer.max_steps
        for step in range(int(state.step) + 1, last + 1):
            state, metrics = self.program.train_step(state, _to_devices(self.program, next(self.batches)))
            pending.append(metrics)
            if step % run.logger.log_every_n_steps == 0 or step == last or len(pending) == 1 == step:
                metric_log.write(step, self._collect(step, pending, stopwatch))
            stopwatch.add(tokens)
            metric_log.step_done(step)
            if self.validation and _due(step, run.trainer.eval_every_n_steps, last):
                metric_log.write(step, self._validate(state))
            if self.checkpoints is not None and self._save_due(step):
                if pending:
                    metric_log.write(step, self._collect(step, pending, stopwatch))
                self.checkpoints.save(state, self.batches, self.metadata, self.validation_loss)

    def _collect(self, step: int, pending: list[Any], stopwatch: Stopwatch) -> dict[str, float]:
        """The metrics of the steps since the last line: the mean of the loss, the last of the others."""
        fetched = jax.device_get(pending)
        pending.clear()
        losses = [float(metrics["loss"]) for metrics in fetched]
        if self.program.run.trainer.check_for_nan and not all(map(math.isfinite, losses)):
            first = step - len(losses) + 1 + next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
            text = f"the loss of step {first} is not finite. Checkpoints saved before are sound."
            raise FloatingPointError(f"{text} Try a lower optimizer.lr, or debug=nans to find the operation.")
        row = {name: float(value) for name, value in fetched[-1].items()} | {"loss": sum(losses) / len(losses)}
        rate = stopwatch.read()
        return row if rate is None else row | {"tokens_per_second": rate}

    def _validate(self, state: TrainState) -> dict[str, float]:
        results = [self.program.eval_step(state.params, batch) for batch in self.validation]
        total, count = (sum(float(value) for value in column) for column in zip(*results, strict=True))
        self.validation_loss = total / max(count, 1)
        return {"validation_loss": self.validation_loss, "validation_bits_per_byte": bits(self.validation_loss)}

    def _save_due(self, step: int) -> bool:
        config = self.program.run.checkpoint
        last = self.program.run.trainer.max_steps
        every = config.save_every_n_steps
        return (config.save_last and step == last) or bool(every and step % every == 0)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or bool(every and step % every == 0)


def _data_shape(run: RunConfig) -> tuple[int, int]:
    config = run.model.model_config
    assert config is not None
    return config.get("context_length"), config.get("vocab_size")


def _to_devices(program: Program, batch: Mapping[str, np.ndarray]) -> Any:
    """This process's rows as global arrays."""
    sharding = program.batch_sharding
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def _validation(program: Program, held_out: Corpus) -> list[Any]:
    trainer = program.run.trainer
    if trainer.eval_batches == 0:
        return []
    position = jax.process_index(), jax.process_count()
    batches = validation_batches(held_out, trainer.batch_size, trainer.eval_batches, *position)
    return [_to_devices(program, batch) for batch in batches]


def _first_state(program: Program, batches: grain.DatasetIterator) -> tuple[TrainState, grain.DatasetIterator]:
    """A new state, or the one that the run continues from, with the data at the same place."""
    run = program.run
    if run.checkpoint.restore is None:
        return program.init(), batches
    checkpoint = find_checkpoint(run.checkpoint.restore)
    _refuse_other_batches(run, read_run(read_metadata_text(checkpoint)))
    state = restore(checkpoint, program.abstract_state, batches)
    if int(state.step) >= run.trainer.max_steps:
        given = {"checkpoint.restore": run.checkpoint.restore, "trainer.max_steps": run.trainer.max_steps}
        text = f"the checkpoint has done {int(state.step)} steps already"
        raise ConfigError([Problem(given, text, "Set trainer.max_steps higher.")])
    log.info("continuing from %s", checkpoint)
    return state, batches


def _refuse_other_batches(run: RunConfig, saved: RunConfig) -> None:
    """The saved position in the data is a number of batches, so it is only good for the same batches."""
    now = {"trainer.batch_size": run.trainer.batch_size, "model.context_length": _data_shape(run)[0]}
    before = {"trainer.batch_size": saved.trainer.batch_size, "model.context_length": _data_shape(saved)[0]}
    now |= {f"data.{key}": value for key, value in run.data.to_dict().items() if key != "prefetch"}
    before |= {f"data.{key}": value for key, value in saved.data.to_dict().items() if key != "prefetch"}
    problems = [
        Problem(
            {key: now.get(key)},
            f"the checkpoint was saved with {before.get(key)}, so its position in the data is another",
        )
        for key in now | before
        if now.get(key) != before.get(key)
    ]
    if problems:
        raise ConfigError(problems)


def _open_checkpoints(run: RunConfig, folder: Path, first_step: int) -> Checkpoints | None:
    if run.checkpoint.save_every_n_steps == 0 and not run.checkpoint.save_last:
        return None
    checkpoints = Checkpoints(folder, run.checkpoint)
    checkpoints.refuse_to_overwrite(first_step)
    return checkpoints


def _record(program: Program, folder: Path, overrides: list[str] | None) -> dict[str, Any]:
    """Write what the run is made from, and where its parameters live, into the run folder. Returns the metadata."""
    parameters = {
        placement.parameter.path: {"shape": list(placement.parameter.shape), "dtype": placement.parameter.dtype}
        for placement in program.placements
    }
    metadata = write_metadata(program.run, parameters=parameters, **provenance(overrides))
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metadata.json").write_text(to_json(metadata), encoding="utf-8")
        (folder / "parameters.txt").write_text(report(program.placements) + "\n", encoding="utf-8")
    return metadata


def _announce(program: Program, data: str) -> None:
    """Tell the layout and what there is to beat, and warn of what will probably not be wanted."""
    parallel, shape = program.run.parallel, program.mesh.shape
    log.info("mesh: %s", describe_mesh(program.mesh))
    log.info("%s", summary(program.placements))
    log.info("%s", data)
    sharded = any(placement.fsdp_axis is not None for placement in program.placements)
    if shape[parallel.fsdp_axis_name] > 1 and not sharded:
        log.warning("FSDP shards no parameter; parameters.txt says why for each. Lower parallel.fsdp_min_weight_size?")
    if sharded and not parallel.remat:
        log.warning("without parallel.remat every gathered parameter is kept for the backward pass")
    tensor = parallel.model_axis_name
    if shape[tensor] > 1 and not any(tensor in placement.spec for placement in program.placements):
        log.warning(
            "no parameter has an array axis for tensor parallelism: all %d devices compute the same", shape[tensor]
        )
