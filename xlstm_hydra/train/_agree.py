"""That all processes do the same: what process 0 has is compared with what the others have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xlstm_hydra.codec import TAG
from xlstm_hydra.configs import DataConfig, RunConfig
from xlstm_hydra.devices import broadcast_text, runtime
from xlstm_hydra.problems import ConfigError, Problem, show
from xlstm_hydra.runs import known_step, read_metadata_text

RUN, CORPUS = "xlstm_hydra/run", "xlstm_hydra/corpus"
"""Keys in the store that process 0 keeps for all."""

SAME = "Start all processes with the same command."


def agree_on_run(run: RunConfig, checkpoint: Path | None) -> None:
    """Make sure that all processes train the same, before any of them starts a device.

    Args:
        run: the config.
        checkpoint: the one that the run continues from.

    Raises:
        ConfigError: with every key that process 0 has another value for.
    """
    if runtime.num_processes() == 1:
        return
    mine = {"config": as_typed(run), "checkpoint": _identity(checkpoint)}
    mine["config"]["distributed.num_processes"] = runtime.num_processes()
    theirs = json.loads(broadcast_text(RUN, json.dumps(mine)))
    problems = [
        *differences(mine["config"], theirs["config"]),
        *_other_checkpoint(_checkpoint_key(run), mine["checkpoint"], theirs["checkpoint"]),
    ]
    if problems:
        raise ConfigError(problems)


def agree_on_corpus(config: DataConfig, fingerprint: str) -> None:
    """Make sure that all processes have the same corpus, wherever each has it.

    Raises:
        ConfigError: process 0 has another one.
    """
    if runtime.num_processes() > 1 and broadcast_text(CORPUS, fingerprint) != fingerprint:
        key = "path" if "path" in config.to_dict() else "name"
        text = "the corpus is not the one of process 0: a file is missing, is not there, or has another name or size"
        raise ConfigError([Problem({f"data.{key}": config.get(key)}, text, "Give all processes the same files.")])


def as_typed(run: RunConfig) -> dict[str, Any]:
    """What all processes must have the same, as plain values under the keys that the user types.

    Left out is what may differ: who and where a process is, where it finds its files, and what it shows.
    """
    plain = run.to_dict()
    model = plain.pop("model")
    config = model.pop("model_config") or {}
    plain["parallel"] = model.pop("parallel")
    plain["model"] = model | {"config_class" if key == TAG else key: value for key, value in config.items()}
    plain["distributed"] = {"device_order": plain["distributed"]["device_order"]}
    plain["data"].pop("path", None)
    del plain["logger"], plain["checkpoint"]["restore"]
    return dict(_flat(plain))


def _flat(plain: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Problem]:
    """Every key that this process has another value for than process 0."""
    for key in dict.fromkeys([*mine, *theirs]):
        if mine.get(key) != theirs.get(key):
            yield Problem({key: mine.get(key)}, f"process 0 has {show(theirs.get(key))}", SAME)


def _identity(checkpoint: Path | None) -> dict[str, Any] | None:
    """What tells a checkpoint from others, under whatever path a host sees it."""
    if checkpoint is None:
        return None
    digest = hashlib.sha256(read_metadata_text(checkpoint).encode()).hexdigest()
    return {"step": known_step(checkpoint), "metadata": digest}


def _checkpoint_key(run: RunConfig) -> dict[str, Any]:
    """The key that names the checkpoint, with its value."""
    task = run.task.get("checkpoint")
    return {"task.checkpoint": task} if task else {"checkpoint.restore": run.checkpoint.restore}


def _other_checkpoint(given: dict[str, Any], mine: Any, theirs: Any) -> Iterator[Problem]:
    if mine == theirs:
        return
    here, there = (f"the checkpoint of step {found['step']}" if found else "none" for found in (mine, theirs))
    text = f"this process reads {here}, process 0 {there}"
    if here == there:
        text = f"this process reads {here} of another run than process 0"
    fix = "Give all processes the same RUN@STEP, in a folder that all hosts share."
    yield Problem(given, text, fix)
