"""The training loop. The functions below `train` are in the order in which they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xlstm_hydra._logging import log
from xlstm_hydra._status import status
from xlstm_hydra.checkpoint import Checkpoints, Logged, find_weights, load_params, read_logged, restore, to_json
from xlstm_hydra.configs import LoggerConfig, RunConfig, resolve_classes
from xlstm_hydra.data import Batches, Corpus, open_corpus, spread_batches, train_batches
from xlstm_hydra.devices import (
    agree_on_folder,
    announce_end,
    broadcast_text,
    is_distributed,
    is_first,
    start_devices,
    together,
)
from xlstm_hydra.optim import build_optimizer
from xlstm_hydra.parallel import build_mesh, sharding_report
from xlstm_hydra.preemption import Preempted, Watch, name_of, watched
from xlstm_hydra.runs import (
    DamagedCheckpoint,
    DamageFound,
    RunFolder,
    StartingPoint,
    damage_before_start,
    find_starting_point,
    provenance,
    refuse_to_overwrite,
    replace_file,
    verification,
    write_metadata,
)
from xlstm_hydra.step import CompilationStats, Program, TrainState, build_program, compilation_cache

from ._agree import agree_on_corpus, agree_on_run
from ._announce import announce, announce_result, announce_start, data_facts, origin_facts
from ._diagnosis import faults_reported
from ._log import MetricLog, Stopwatch, bits
from ._planning import choose_layout, plan_program
from ._resumed import Resumed, read_resumed, refuse_other_corpus, refuse_other_result
from ._stop import Stop

INIT_FROM = "checkpoint.init_from"
"""Key of the option that names the checkpoint from which a new run loads its parameters."""


def train(run: RunConfig, folder: Path | str = ".", overrides: list[str] | None = None) -> float | None:
    """Train a run and save it in `folder`.

    With several processes, every process must call this. If one fails, all exit instead of raising (see `together`).

    Args:
        run: the config.
        folder: the run folder.
        overrides: the overrides on the command line, recorded in the metadata.

    Returns:
        The last validation loss in nats per token; None without validation.

    Raises:
        ConfigError: the run does not fit the devices, the data or the checkpoint that it continues from.
        FloatingPointError: a loss or a norm is not finite.
        OSError: a system error, such as a full disk. The message names the last checkpoint.
        Preempted: a signal stopped the run, which is saved if saving is enabled (see `xlstm_hydra.preemption`).
    """
    with watched() as watch, together(run.distributed):
        if is_distributed():
            watch.before_leaving = announce_end
        folder = agree_on_folder(Path(folder))
        if is_first():
            RunFolder(folder).refuse_links_out()
        with faults_reported(folder), verification(run.checkpoint.verify):
            return _train(run, folder, overrides, watch)


def _train(run: RunConfig, folder: Path, overrides: list[str] | None, watch: Watch) -> float | None:
    """Train from the run's starting point. If the config names no step, this is the last intact checkpoint."""
    start = find_starting_point(run, folder)
    if start.checkpoint is None and run.checkpoint.init_from is not None:
        start = replace(start, weights=find_weights(run.checkpoint.init_from, INIT_FROM))
    agree_on_run(run, start.checkpoint)
    if start.checkpoint is not None and start.is_done(run.trainer.max_steps):
        refuse_other_result(replace(run, model=resolve_classes(run.model)), start.checkpoint)
        log.info("the run in %s has already completed its %d steps", folder, run.trainer.max_steps)
        return read_logged(start.checkpoint).validation_loss
    with status("reading the list of data files"):
        data = open_corpus(run.data, *_data_shape(run))  # before JAX starts, so that missing data is reported quickly
    agree_on_corpus(run.data, data[0].fingerprint())
    with status("starting the devices"):
        start_devices(run)
    with compilation_cache(run.trainer) as programs:
        while True:
            try:
                return _train_from(start, run, data, folder, overrides, watch, programs)
            except DamagedCheckpoint as error:
                if not start.is_newest or (is_distributed() and not isinstance(error, DamageFound)):
                    raise
                if is_first():
                    log.warning("%s", error)
                start = find_starting_point(run, folder, [path for path in (start.checkpoint, *start.skipped) if path])
                agree_on_run(run, start.checkpoint)


def _train_from(
    start: StartingPoint,
    run: RunConfig,
    data: tuple[Corpus, Corpus],
    folder: Path,
    overrides: list[str] | None,
    watch: Watch,
    programs: CompilationStats,
) -> float | None:
    corpus, held_out = data
    choice = choose_layout(replace(run, model=resolve_classes(run.model)))
    run = choice.run
    resumed = None if start.checkpoint is None else read_resumed(run, start.checkpoint)
    announce_start(run, folder, start, resumed)
    mesh = build_mesh(run.parallel, order=run.distributed.device_order)
    program = build_program(run, mesh, build_optimizer)
    plan = plan_program(program)
    if resumed is not None:
        refuse_other_corpus(run, resumed, corpus.fingerprint())
    batches = train_batches(corpus, run.data, run.trainer.batch_size, program.batch_rows)
    state, logged = _first_state(program, batches, resumed, start.weights)
    _set_aside(start, run.trainer.max_steps)
    refuse_to_overwrite(folder, int(state.step))
    metadata = _record(program, folder, corpus, overrides, resumed)
    choice.keep(folder)
    plan.keep(folder)
    with status("reading data"):
        entropy = corpus.unigram_entropy()
    facts = [*data_facts(corpus, entropy), *origin_facts(folder, start, resumed)]
    announce(program, plan, facts, int(state.step))
    validation = _validation(program, held_out)
    with _open_checkpoints(run, folder) as checkpoints:
        loop = _Loop(program, batches, validation, checkpoints, metadata, corpus.unit, watch)
        loop.losses = [*logged.losses]
        try:
            with MetricLog(_own_logger(run), folder, int(state.step), run.trainer.max_steps) as metric_log:
                loop.run(state, metric_log)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"resume={folder} continues from the last checkpoint, if there is one") from None
    if loop.stopped_after is not None:
        raise _preempted(watch, loop.stopped_after, None if checkpoints is None else folder)
    plan.compare(folder, loop.stopwatch, programs)
    announce_result(metric_log.best, corpus.unit, folder)
    return loop.validation_loss


def _preempted(watch: Watch, step: int, folder: Path | None) -> Preempted:
    """Return the exception for a run that was stopped by a signal. Only process 0 has a message.

    Args:
        watch: the watch that received the signal.
        step: the last completed step.
        folder: the folder in which the step is saved; None if it is not saved.
    """
    text = f"saved step {step} in {folder}; resume={folder} continues the run"
    if folder is None:
        text = f"stopped after step {step} without saving: checkpoint.save_every_n_steps=0 and save_last=false"
    return Preempted(f"{name_of(watch.request or 0)}: {text}" if is_first() else "", by_all=True)


@dataclass
class _Loop:
    """The training steps, with logging, validation and saving between them."""

    program: Program
    batches: Batches
    validation: list[Any]
    checkpoints: Checkpoints | None
    metadata: Mapping[str, Any]
    unit: str
    watch: Watch
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    validation_loss: float | None = None
    losses: list[float] = field(default_factory=list)
    """Losses of the steps since the last line of metrics, as far as they have been copied from the device."""
    stopped_after: int | None = None
    """Last step before an early stop; None if the run was not stopped."""

    def run(self, state: TrainState, metric_log: MetricLog) -> None:
        """Train from the step in the state to the last step, or until a stop is requested."""
        with Stop(self.watch, int(state.step)) as stop:
            self._run(state, metric_log, stop)

    def _run(self, state: TrainState, metric_log: MetricLog, stop: Stop) -> None:
        run = self.program.run
        tokens = run.trainer.batch_size * _data_shape(run)[0]
        stopwatch, pending = self.stopwatch, []
        first, last = int(state.step) + 1, run.trainer.max_steps
        for step in range(first, last + 1):
            if stop.is_before(step):
                return self._stop(state, step - 1, pending)
            batch, numbers = self.program.put(next(self.batches)), self.program.numbers(step - 1)
            with status("compiling the training step") if step == first else nullcontext():
                state, metrics = self.program.train_step(state, batch, numbers)
            self.watch.defer()
            if self.checkpoints is not None:
                self.checkpoints.check()
            pending.append(metrics)
            stopwatch.add(tokens)
            save, validate = self._save_due(step), self.validation and _due(step, run.trainer.eval_every_n_steps, last)
            if save or step in (1, last) or step % run.logger.log_every_n_steps == 0:
                metric_log.write(step, self._collect(step, pending))
            metric_log.step_done(step)
            if validate:
                with status("validating"):
                    row = self._validate(step, state)
                metric_log.write(step, row)
            if save and self.checkpoints is not None:
                with status(f"saving step {step}"):
                    self.checkpoints.save(state, self.batches, self.metadata, self.validation_loss)
            if save or validate or step == first:
                stopwatch.start()  # excludes compilation, validation and saving from the throughput

    def _stop(self, state: TrainState, step: int, pending: list[Any]) -> None:
        """Save everything that a resumed run needs to continue as if it had never stopped."""
        self._fetch(step, pending)
        if self.checkpoints is not None:
            with status(f"saving step {step}"):
                self.checkpoints.save(state, self.batches, self.metadata, None, self.losses)
        self.stopped_after = step

    def _collect(self, step: int, pending: list[Any]) -> dict[str, float]:
        """Return the metrics of the steps since the last line: the mean loss, and the last value of the others."""
        row = self._fetch(step, pending)
        row["loss"] = sum(self.losses) / len(self.losses)
        self.losses.clear()
        rate = self.stopwatch.read()
        return row if rate is None else row | {"tokens_per_second": rate}

    def _fetch(self, step: int, pending: list[Any]) -> dict[str, float]:
        """Wait for the pending steps, and return the metrics of the last step."""
        fetched = [{name: float(value) for name, value in row.items()} for row in jax.device_get(pending)]
        pending.clear()
        for row, number in zip(fetched, range(step - len(fetched) + 1, step + 1), strict=True):
            for name in ("loss", "grad_norm", "param_norm"):
                self._refuse_non_finite(name, row[name], number)
        self.losses += [row["loss"] for row in fetched]
        return fetched[-1] if fetched else {}

    def _refuse_non_finite(self, name: str, value: float, step: int) -> None:
        trainer = self.program.run.trainer
        if trainer.check_for_nan and not math.isfinite(value):
            saved = "All checkpoints have finite parameters, but the latest may already have diverged"
            way = "resume=RUN@STEP hydra.run.dir=DIR continues in another folder from an earlier checkpoint"
            fix = f"Try a lower optimizer.lr{'' if trainer.debug_nans else ', or debug=nans to find the operation'}"
            raise FloatingPointError(f"{name} is {value} at step {step}. {saved}; {way}. {fix}.")

    def _validate(self, step: int, state: TrainState) -> dict[str, float]:
        results = [self.program.eval_step(state.params, batch) for batch in self.validation]
        total, count = (sum(float(value) for value in column) for column in zip(*results, strict=True))
        loss = self.validation_loss = total / max(count, 1)
        self._refuse_non_finite("validation_loss", loss, step)
        return {"validation_loss": loss} | ({"validation_bits_per_byte": bits(loss)} if self.unit == "byte" else {})

    def _save_due(self, step: int) -> bool:
        config, last = self.program.run.checkpoint, self.program.run.trainer.max_steps
        due = _due(step, config.save_every_n_steps, last if config.save_last else None)
        return due and self.checkpoints is not None


def _due(step: int, every: int, last: int | None) -> bool:
    return step == last or bool(every and step % every == 0)


def _data_shape(run: RunConfig) -> tuple[int, int]:
    config = run.model.model_config
    assert config is not None
    return config.get("context_length"), config.get("vocab_size")


def _validation(program: Program, held_out: Corpus) -> list[Any]:
    trainer = program.run.trainer
    if trainer.eval_batches == 0:
        return []
    batches = spread_batches(held_out, trainer.batch_size, trainer.eval_batches, program.batch_rows)
    return [program.put(batch) for batch in batches]


def _set_aside(start: StartingPoint, max_steps: int) -> None:
    """Report damaged checkpoints, and rename those in this run folder."""
    if not start.skipped:
        return
    if is_first():
        for checkpoint in start.skipped:
            for text in damage_before_start(checkpoint, max_steps):
                log.warning("%s: %s", checkpoint, text)
        for before, after in start.set_damaged_aside():
            log.warning("%s is damaged and was moved to %s", before, after)
    broadcast_text("xlstm_hydra/aside", "")


def _first_state(
    program: Program, batches: Batches, resumed: Resumed | None, weights: Path | None
) -> tuple[TrainState, Logged]:
    """Return a new state, or the saved state with its log. With a saved state, `batches` moves to the saved
    position."""
    where = program.state_shardings
    if resumed is None:
        with status("loading the parameters"):
            params = None if weights is None else load_params(weights, program.model, where.params, INIT_FROM)
        with status("compiling the initialization"):
            return program.init(params), Logged()
    if resumed.imported:
        state = program.init(load_params(resumed.checkpoint, program.model, where.params))
        return state._replace(step=jax.device_put(np.int32(resumed.step), where.step)), Logged()
    with status(f"restoring step {resumed.step}"):
        return restore(resumed.checkpoint, program.abstract_state, batches), read_logged(resumed.checkpoint)


def _own_logger(run: RunConfig) -> LoggerConfig:
    """Return the logger options of this process. Only process 0 writes metrics, which are equal in all processes."""
    return run.logger if is_first() else replace(run.logger, progress=False, csv=False, tensorboard=False)


def _open_checkpoints(run: RunConfig, folder: Path) -> AbstractContextManager[Checkpoints | None]:
    wanted = run.checkpoint.save_every_n_steps > 0 or run.checkpoint.save_last
    return Checkpoints(folder, run.checkpoint) if wanted else nullcontext()


def _record(
    program: Program, folder: Path, corpus: Corpus, overrides: list[str] | None, resumed: Resumed | None
) -> dict[str, Any]:
    """Write the metadata and the placement of the parameters to the run folder, and return the metadata."""
    parameters = {
        placement.parameter.path: {"shape": list(placement.parameter.shape), "dtype": placement.parameter.dtype}
        for placement in program.placements
    }
    extra = provenance(overrides) | {"parameters": parameters, "corpus": corpus.fingerprint()}
    extra["history"] = resumed.history() if resumed else []
    metadata = write_metadata(program.run, **extra)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "metadata.json", to_json(metadata))
        replace_file(folder / "parameters.txt", sharding_report(program.placements) + "\n")
    return metadata
