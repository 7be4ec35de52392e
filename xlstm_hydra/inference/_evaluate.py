"""Evaluation: the loss of a checkpoint on a corpus."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from xlstm_hydra._logging import log, log_fact
from xlstm_hydra._status import status
from xlstm_hydra.configs import DataConfig, EvaluateTaskConfig, RunConfig
from xlstm_hydra.data import Corpus, open_corpus, open_whole_corpus, spread_batches
from xlstm_hydra.devices import agree_on_folder, together
from xlstm_hydra.parallel import describe_mesh
from xlstm_hydra.runs import provenance, verification
from xlstm_hydra.step import Program, build_program
from xlstm_hydra.train import agree_on_corpus, bits

from ._load_model import find, read_params, start, write_result

RESULT = "evaluation.json"
"""Name of the result file in the run folder."""


def evaluate(run: RunConfig, folder: Path | str = ".", overrides: list[str] | None = None) -> float:
    """Compute the loss of a checkpoint and write it to `evaluation.json` in `folder`.

    With several processes, every process must call this. If one fails, all exit instead of raising (see `together`).

    Args:
        run: the config; its task is an `EvaluateTaskConfig`.
        folder: the folder to which the result is written.
        overrides: the overrides on the command line, recorded in the result.

    Returns:
        The mean loss in nats per target token.

    Raises:
        ConfigError: the run does not fit the devices, the data or the checkpoint.
    """
    with verification(run.checkpoint.verify), together(run.distributed):
        return _evaluate(run, Path(folder), overrides)


def _evaluate(run: RunConfig, folder: Path, overrides: list[str] | None) -> float:
    task = run.task
    assert isinstance(task, EvaluateTaskConfig)
    checkpoint = find(run)
    config: Any = run.model.model_config
    corpus = _open(run.data, task.split, config.context_length, config.vocab_size)
    agree_on_corpus(run.data, corpus.fingerprint())
    run = start(run)
    folder = agree_on_folder(folder)
    program = build_program(run)
    log_fact("mesh", describe_mesh(program.mesh))
    params = read_params(run, checkpoint, program.param_shardings)
    with status("evaluating"):
        total, targets, batches = _sum_losses(program, params, corpus, task.num_batches)
    result = _result(total / targets, corpus) | {"targets": targets, "batches": batches, "split": task.split}
    write_result(folder / RESULT, checkpoint, result | {"data": run.data.to_dict()} | provenance(overrides))
    for key, text in _facts(result, corpus.unit):
        log_fact(key, text)
    return result["loss"]


def _open(data: DataConfig, split: str, context_length: int, vocab_size: int) -> Corpus:
    if split == "all":
        return open_whole_corpus(data, context_length, vocab_size)
    return open_corpus(data, context_length, vocab_size)[split == "validation"]


def _sum_losses(program: Program, params: Any, corpus: Corpus, num_batches: int | None) -> tuple[float, int, int]:
    """Return the total loss in nats, the number of target tokens, and the number of batches."""
    size, every = program.run.trainer.batch_size, program.run.logger.log_every_n_steps
    whole = math.ceil(len(corpus) / size)
    count = min(whole, num_batches or whole)
    losses = _losses(program, params, spread_batches(corpus, size, count, program.batch_rows))
    total, targets, done = 0.0, 0, 0
    while part := list(islice(losses, every)):
        for loss, number in jax.device_get(part):
            total, targets = total + float(loss), targets + int(number)
        done += len(part)
        if done < count:
            log.info("batch %*d/%d  loss %.4f so far", len(str(count)), done, count, total / max(targets, 1))
    return total, targets, count


def _losses(program: Program, params: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the total loss and the number of targets of each batch, without waiting for the device."""
    for batch in batches:
        yield program.eval_step(params, program.put(batch))


def _result(loss: float, corpus: Corpus) -> dict[str, Any]:
    return {
        "loss": loss,
        f"bits_per_{corpus.unit}": bits(loss),
        "perplexity": math.exp(loss),
        f"unigram_bits_per_{corpus.unit}": corpus.unigram_entropy(),
    }


def _facts(result: dict[str, Any], unit: str) -> Iterator[tuple[str, str]]:
    part = "the whole corpus" if result["split"] == "all" else f"the {result['split']} split"
    yield "data", f"{result['targets']:,} targets of {part}"
    yield "", f"unigram entropy {result[f'unigram_bits_per_{unit}']:.3f} bits/{unit}"
    yield "loss", f"{result['loss']:.4f} ({result[f'bits_per_{unit}']:.3f} bits/{unit})"
    yield "", f"perplexity {result['perplexity']:.2f}"
