"""Steps shared by the tasks that use a checkpoint: find it, start the devices, load the parameters, write the
result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm_hydra._logging import log_fact
from xlstm_hydra._printable import short_path
from xlstm_hydra._status import status
from xlstm_hydra.checkpoint import load_params, to_json
from xlstm_hydra.configs import RunConfig, resolve_classes
from xlstm_hydra.devices import is_first, start_devices
from xlstm_hydra.runs import find_checkpoint, known_step, replace_file, run_of
from xlstm_hydra.train import agree_on_run

KEY = "task.checkpoint"
"""Key of the option that names the checkpoint."""


def find(run: RunConfig) -> Path:
    """Return the checkpoint path of a task, and check that all processes have the same run and checkpoint. No devices
    are started.

    Raises:
        ConfigError: the checkpoint does not exist, or process 0 has another run or checkpoint.
    """
    checkpoint = find_checkpoint(run.task.get("checkpoint"), KEY)
    agree_on_run(run, checkpoint)
    return checkpoint


def start(run: RunConfig) -> RunConfig:
    """Start the devices, and return the run with its model class imported.

    Raises:
        ConfigError: the run does not fit the devices.
    """
    with status("starting the devices"):
        start_devices(run)
    return dataclasses.replace(run, model=resolve_classes(run.model))


def read_params(run: RunConfig, checkpoint: Path, shardings: Any) -> Any:
    """Load the parameters of a checkpoint, and no other arrays, to the devices according to `shardings`.

    Raises:
        ConfigError: the parameters belong to another model.
    """
    with status("loading the parameters"):
        params = load_params(checkpoint, run.model, shardings, KEY)
    run_folder, step = run_of(checkpoint), known_step(checkpoint)
    if run_folder is None or step is None:
        log_fact("weights", f"from {short_path(checkpoint)}")
    else:
        log_fact("weights", f"from step {step} of {short_path(run_folder)}")
    return params


def write_result(file: Path, checkpoint: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, with the path and the step of the checkpoint."""
    if is_first():
        file.parent.mkdir(parents=True, exist_ok=True)
        origin = {"checkpoint": str(checkpoint), "step": known_step(checkpoint)}
        replace_file(file, to_json(origin | dict(result)))
