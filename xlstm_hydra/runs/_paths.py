"""Paths of checkpoints and their metadata in a run folder. Needs neither Orbax nor JAX."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from xlstm_hydra.problems import ConfigError, Problem, either

from ._links import refuse_links_out
from ._manifest import MANIFEST
from ._verify import read_verified

FOLDER = "checkpoints"
"""Name of the checkpoint folder in a run folder."""

PREFIX = "checkpoint_"
"""Prefix of the folder names of xlstm-jax checkpoints. The step follows it."""

_UNFINISHED = ".orbax-checkpoint-tmp"
"""Part of the temporary name that Orbax gives to a checkpoint folder until the checkpoint is complete."""

RESTORE = "checkpoint.restore"
"""Key of the field that most often refers to a checkpoint. Default of `key` in functions that raise errors."""


def step_of(checkpoint: Path, key: str = RESTORE) -> int:
    """Return the step of a checkpoint.

    Raises:
        ConfigError: neither the content nor the folder name of the checkpoint contains the step.
    """
    step = known_step(checkpoint)
    if step is None:
        raise refused(
            str(checkpoint), "its step is not recorded", "Rename the checkpoint folder to the step number.", key
        )
    return step


def known_step(checkpoint: Path) -> int | None:
    """Return the recorded step of a checkpoint. If it is not recorded, return the step in the folder name, or None."""
    try:
        content: Any = json.loads(read_verified(checkpoint, "data/metadata", RESTORE))
    except (OSError, ValueError, RecursionError):
        content = None
    recorded = content if isinstance(content, dict) else {}
    steps = (recorded.get("step"), step_in_name(checkpoint), recorded.get("batches"))  # batches: in earlier versions
    return next((step for step in steps if type(step) is int), None)


def step_in_name(folder: Path) -> int | None:
    """Return the step in a folder name, or None."""
    digits = folder.name.removeprefix(PREFIX)
    return int(digits) if digits.isascii() and digits.isdigit() else None


def is_checkpoint(folder: Path) -> bool:
    """True if a folder is a checkpoint of xlstm-hydra or xlstm-jax, regardless of its name and location."""
    return any((folder / item).is_dir() for item in ("metadata", "params"))


def is_finished(checkpoint: Path) -> bool:
    """True if a checkpoint was saved completely.

    Orbax marks a complete checkpoint with the file `commit_success.txt` or with a time stamp in `_CHECKPOINT_METADATA`.
    On a local disk it also renames the folder at the end, so old local checkpoints without these marks are complete.
    Our manifest is written last, so a checkpoint with a manifest is complete even if a mark is damaged.
    """
    if _UNFINISHED in checkpoint.name:
        return False
    if any((checkpoint / name).is_file() for name in ("commit_success.txt", MANIFEST)):
        return True
    try:
        state: Any = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return isinstance(checkpoint, Path)
    except (OSError, ValueError, RecursionError):  # the file was not written completely
        return False
    return isinstance(state, dict) and state.get("commit_timestamp_nsecs") is not None


def has_metadata(checkpoint: Path) -> bool:
    """True if the metadata of a checkpoint exists and is valid JSON."""
    try:
        json.loads(read_metadata_text(checkpoint))
    except (ConfigError, ValueError, RecursionError):
        return False
    return True


def steps_folder(folder: Path) -> Path:
    """Return the checkpoint folder of a run, given the run folder or the checkpoint folder itself."""
    return folder / FOLDER if (folder / FOLDER).is_dir() else folder


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder of a checkpoint, or None if the checkpoint was copied elsewhere."""
    return checkpoint.parents[1] if checkpoint.parent.name == FOLDER else None


def saved_steps(run_folder: Path) -> list[int]:
    """Return the steps with finished checkpoints, in ascending order."""
    return sorted(saved_checkpoints(run_folder))


def saved_checkpoints(run_folder: Path) -> dict[int, Path]:
    """Return the finished checkpoints of an xlstm-hydra or xlstm-jax run by the step in their names."""
    return _finished(run_folder / FOLDER)


def checkpoints_at(folder: Path) -> dict[int, Path]:
    """Return the finished checkpoints by step, given a run folder or a checkpoint folder, which may have been copied or
    renamed."""
    found = _finished(steps_folder(folder))  # jobs of a sweep, for example, also have numbers as names
    return {step: path for step, path in found.items() if is_checkpoint(path)}


def to_path(source: str) -> Path:
    """Return a local path, or an `epath.Path` if the source is an address such as `gs://bucket/runs/a`."""
    if "://" not in source:
        return Path(os.path.expanduser(source))  # pathlib's version raises an error for an unknown user
    from etils import epath  # needed only for remote storage

    return cast(Path, epath.Path(source))


def read_metadata_text(checkpoint: Path, key: str = RESTORE) -> str:
    """Return the metadata text of a checkpoint.

    Raises:
        ConfigError: there is no metadata, the metadata file is a link to another folder, or it differs from the
            manifest.
    """
    if isinstance(checkpoint, Path):
        root = run_of(checkpoint) or checkpoint
        refuse_links_out(root, [checkpoint / "metadata" / "metadata"], {key: str(checkpoint)}, "Choose another step.")
    try:
        return read_verified(checkpoint, "metadata/metadata", key).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise refused(str(checkpoint), f"its metadata cannot be read: {error}", "Choose another step.", key) from None


def refuse_to_overwrite(run_folder: Path, first_step: int, besides: Iterable[Path] = ()) -> None:
    """Check that a run that starts from `first_step` would not overwrite checkpoints of later steps.

    Args:
        run_folder: the run folder.
        first_step: the step that the run starts from.
        besides: damaged checkpoints, which may be overwritten.

    Raises:
        ConfigError: the run would overwrite a checkpoint.
    """
    folder = run_folder / FOLDER
    items = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    if files := [item for item in items if not item.is_dir() and (item == folder or step_in_name(item) is not None)]:
        text = f"{files[0]} is a file, but a checkpoint would be saved there"
        raise ConfigError([Problem({"hydra.run.dir": str(run_folder)}, text, "Remove the file.")])
    set_aside = {step_in_name(checkpoint) for checkpoint in besides}
    if later := [step for step in saved_steps(run_folder) if step > first_step and step not in set_aside]:
        text = f"already has checkpoints of later steps ({either(later)}), which would be overwritten"
        raise ConfigError([Problem({"hydra.run.dir": str(run_folder)}, text, "Choose another folder.")])


def refused(source: str, text: str, fix: str, key: str = RESTORE) -> ConfigError:
    """Return an error about the checkpoint `source`, which was given as the value of `key`."""
    return ConfigError([Problem({key: source}, text, fix)])


def _finished(folder: Path) -> dict[int, Path]:
    items = sorted(folder.iterdir()) if folder.is_dir() else []
    steps = {item: step for item in items if (step := step_in_name(item)) is not None and item.is_dir()}
    return {step: item for item, step in steps.items() if is_finished(item)}
