"""Check that all processes have the same run, checkpoint and corpus as process 0."""

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
"""Keys in the key-value store of process 0."""

SAME = "Start all processes with the same command."


def agree_on_run(run: RunConfig, checkpoint: Path | None) -> None:
    """Check that all processes have the same run and checkpoint, before any process starts its devices.

    Args:
        run: the config.
        checkpoint: path of the checkpoint that the run continues from.

    Raises:
        ConfigError: this process has other values than process 0. The error lists every key that differs.
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
    """Check that all processes have the same corpus. The path of the corpus may differ.

    Raises:
        ConfigError: this process has another corpus than process 0.
    """
    if runtime.num_processes() > 1 and broadcast_text(CORPUS, fingerprint) != fingerprint:
        key = "path" if "path" in config.to_dict() else "name"
        text = "the corpus differs from that of process 0: a file was added, removed, renamed or resized"
        raise ConfigError([Problem({f"data.{key}": config.get(key)}, text, "Give all processes the same files.")])


def as_typed(run: RunConfig) -> dict[str, Any]:
    """Return the config values that must be equal in all processes, by the keys that the user types.

    Values that may differ are omitted: the process id and address, file paths, and the logger options.
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
    """Yield a problem for every key whose value differs between this process and process 0."""
    for key in dict.fromkeys([*mine, *theirs]):
        if mine.get(key) != theirs.get(key):
            yield Problem({key: mine.get(key)}, f"process 0 has {show(theirs.get(key))}", SAME)


def _identity(checkpoint: Path | None) -> dict[str, Any] | None:
    """Return values that identify a checkpoint independently of its path, which may differ between hosts."""
    if checkpoint is None:
        return None
    digest = hashlib.sha256(read_metadata_text(checkpoint).encode()).hexdigest()
    return {"step": known_step(checkpoint), "metadata": digest}


def _checkpoint_key(run: RunConfig) -> dict[str, Any]:
    """Return the key and the value of the option that names the checkpoint."""
    task = run.task.get("checkpoint")
    return {"task.checkpoint": task} if task else {"checkpoint.restore": run.checkpoint.restore}


def _other_checkpoint(given: dict[str, Any], mine: Any, theirs: Any) -> Iterator[Problem]:
    if mine == theirs:
        return
    here, there = (f"the checkpoint of step {found['step']}" if found else "no checkpoint" for found in (mine, theirs))
    text = f"this process reads {here}, but process 0 reads {there}"
    if here == there:
        text = f"this process and process 0 read {here}, but from different runs"
    fix = "Give all processes the same RUN@STEP, in a folder that all hosts share."
    yield Problem(given, text, fix)
