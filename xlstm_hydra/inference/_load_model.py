"""What every task that uses a checkpoint begins and ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_hydra._logging import log
from xlstm_hydra.checkpoint import load_params, to_json
from xlstm_hydra.configs import RunConfig, resolve_classes
from xlstm_hydra.devices import is_first, start_devices
from xlstm_hydra.runs import find_checkpoint, known_step, replace_file, run_of
from xlstm_hydra.train import agree_on_run

KEY = "task.checkpoint"
"""What names the checkpoint."""


def find(run: RunConfig) -> Path:
    """Return the checkpoint of a task, the same in all processes. No device starts here.

    Raises:
        ConfigError: there is no such checkpoint, or another process has another run or checkpoint.
    """
    checkpoint = find_checkpoint(run.task.get("checkpoint"), KEY)
    agree_on_run(run, checkpoint)
    return checkpoint


def start(run: RunConfig) -> RunConfig:
    """Set up the devices. Returns the run with its model class.

    Raises:
        ConfigError: the run does not fit the devices.
    """
    start_devices(run)
    return dataclasses.replace(run, model=resolve_classes(run.model))


def read_params(run: RunConfig, checkpoint: Path, shardings: Any) -> Any:
    """The parameters of a checkpoint, and nothing else of it.

    Raises:
        ConfigError: they are those of another model.
    """
    params = load_params(checkpoint, run.model, shardings, KEY)
    run_folder, step = run_of(checkpoint), known_step(checkpoint)
    if run_folder is None or step is None:
        log.info("parameters of %s", checkpoint)
    else:
        log.info("parameters of step %d of %s", step, run_folder)
    return params


def write_result(file: Path, checkpoint: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, beside what it was made from."""
    if is_first():
        file.parent.mkdir(parents=True, exist_ok=True)
        origin = {"checkpoint": str(checkpoint), "step": known_step(checkpoint)}
        replace_file(file, to_json(origin | dict(result)))
