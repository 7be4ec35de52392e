"""What every task that uses a checkpoint begins and ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xlstm_hydra.checkpoint import load_params, to_json
from xlstm_hydra.configs import ConfigError, RunConfig
from xlstm_hydra.hydra import resolve_classes
from xlstm_hydra.metadata import find_checkpoint, step_of
from xlstm_hydra.train._agree import agree_on_run
from xlstm_hydra.train._devices import start_devices
from xlstm_hydra.train._log import log
from xlstm_hydra.train._processes import is_first


def start(run: RunConfig) -> tuple[RunConfig, Path]:
    """Find the checkpoint and set up the devices. Returns the run with its model class, and the checkpoint's folder.

    Raises:
        ConfigError: there is no such checkpoint, or the run does not fit the devices.
    """
    with told_of_task():
        checkpoint = find_checkpoint(run.task.get("checkpoint"))
    agree_on_run(run, checkpoint)
    start_devices(run)
    return dataclasses.replace(run, model=resolve_classes(run.model)), checkpoint


def read_params(run: RunConfig, checkpoint: Path, shardings: Any) -> Any:
    """The parameters of a checkpoint, and nothing else of it.

    Raises:
        ConfigError: they are those of another model.
    """
    with told_of_task():
        params = load_params(checkpoint, run.model, shardings)
    log.info("parameters of step %d of %s", step_of(checkpoint), checkpoint.parents[1])
    return params


@contextmanager
def told_of_task() -> Iterator[None]:
    """What is wrong with a checkpoint is told under the key that names it here."""
    try:
        yield
    except ConfigError as error:
        keys = {"checkpoint.restore": "task.checkpoint"}
        raise ConfigError(
            dataclasses.replace(problem, given={keys.get(key, key): value for key, value in problem.given.items()})
            for problem in error.problems
        ) from None


def write_result(file: Path, checkpoint: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, beside what it was made from."""
    if is_first():
        file.parent.mkdir(parents=True, exist_ok=True)
        origin = {"checkpoint": str(checkpoint), "step": step_of(checkpoint)}
        file.write_text(to_json(origin | dict(result)), encoding="utf-8")
