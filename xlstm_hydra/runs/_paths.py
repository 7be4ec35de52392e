"""Where a run folder keeps its checkpoints and their metadata. Needs neither Orbax nor JAX."""

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
"""Name of the folder in a run folder."""

PREFIX = "checkpoint_"
"""What the name of a checkpoint of xlstm-jax begins with, before its step."""

_UNFINISHED = ".orbax-checkpoint-tmp"
"""What Orbax adds to the name of a folder until all is in it."""

RESTORE = "checkpoint.restore"
"""The key that a checkpoint is most often named by."""


def step_of(checkpoint: Path, key: str = RESTORE) -> int:
    """The step of a checkpoint.

    Raises:
        ConfigError: neither the checkpoint nor the name of its folder has it.
    """
    step = known_step(checkpoint)
    if step is None:
        raise refused(str(checkpoint), "its step is not recorded", "Rename its folder to the number of the step.", key)
    return step


def known_step(checkpoint: Path) -> int | None:
    """The step of a checkpoint: as it recorded it, or else from the name of its folder; None if neither has it."""
    try:
        content: Any = json.loads(read_verified(checkpoint, "data/metadata", RESTORE))
    except (OSError, ValueError, RecursionError):
        content = None
    recorded = content if isinstance(content, dict) else {}
    steps = (recorded.get("step"), step_in_name(checkpoint), recorded.get("batches"))  # the last one: earlier versions
    return next((step for step in steps if type(step) is int), None)


def step_in_name(folder: Path) -> int | None:
    """The step that the name of a folder gives, or None."""
    digits = folder.name.removeprefix(PREFIX)
    return int(digits) if digits.isascii() and digits.isdigit() else None


def is_checkpoint(folder: Path) -> bool:
    """True if a folder holds a checkpoint, of ours or of xlstm-jax, whatever its name and wherever it lies."""
    return any((folder / item).is_dir() for item in ("metadata", "params"))


def is_finished(checkpoint: Path) -> bool:
    """True if Orbax finished the save, which it marks with a file, and with a time in another one. On a disk it also
    renames the folder at the end, so an old checkpoint without either mark is finished there. The manifest comes last,
    so a checkpoint that has one is finished, and one of these marks may be damaged."""
    if _UNFINISHED in checkpoint.name:
        return False
    if any((checkpoint / name).is_file() for name in ("commit_success.txt", MANIFEST)):
        return True
    try:
        state: Any = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return isinstance(checkpoint, Path)
    except (OSError, ValueError, RecursionError):  # it was being written
        return False
    return isinstance(state, dict) and state.get("commit_timestamp_nsecs") is not None


def has_metadata(checkpoint: Path) -> bool:
    """True if the metadata of a checkpoint is there and whole."""
    try:
        json.loads(read_metadata_text(checkpoint))
    except (ConfigError, ValueError, RecursionError):
        return False
    return True


def steps_folder(folder: Path) -> Path:
    """The folder with the checkpoints of a run, which may be given itself."""
    return folder / FOLDER if (folder / FOLDER).is_dir() else folder


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None for one that was copied elsewhere."""
    return checkpoint.parents[1] if checkpoint.parent.name == FOLDER else None


def saved_steps(run_folder: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    return sorted(saved_checkpoints(run_folder))


def saved_checkpoints(run_folder: Path) -> dict[int, Path]:
    """The finished checkpoints of a run, of ours or of xlstm-jax, by the step in their names."""
    return _finished(run_folder / FOLDER)


def checkpoints_at(folder: Path) -> dict[int, Path]:
    """The same of a run, or of the folder of its checkpoints, which may have been copied or renamed."""
    found = _finished(steps_folder(folder))  # numbers name other things too, such as the jobs of a sweep
    return {step: path for step, path in found.items() if is_checkpoint(path)}


def to_path(source: str) -> Path:
    """A path on this machine, or one that behaves alike if the source is an address such as `gs://bucket/runs/a`."""
    if "://" not in source:
        return Path(os.path.expanduser(source))  # that of pathlib raises an error for a user who is not there
    from etils import epath  # only for storage elsewhere

    return cast(Path, epath.Path(source))


def read_metadata_text(checkpoint: Path, key: str = RESTORE) -> str:
    """The metadata text of a checkpoint.

    Raises:
        ConfigError: it has none, or only a link to another folder, or it differs from the manifest.
    """
    if isinstance(checkpoint, Path):
        root = run_of(checkpoint) or checkpoint
        refuse_links_out(root, [checkpoint / "metadata" / "metadata"], {key: str(checkpoint)}, "Choose another step.")
    try:
        return read_verified(checkpoint, "metadata/metadata", key).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise refused(str(checkpoint), f"its metadata cannot be read: {error}", "Choose another step.", key) from None


def refuse_to_overwrite(run_folder: Path, first_step: int, besides: Iterable[Path] = ()) -> None:
    """Make sure that a run which begins after `first_step` would not write over a later checkpoint, besides damaged
    ones.

    Raises:
        ConfigError: it would.
    """
    folder = run_folder / FOLDER
    items = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    if files := [item for item in items if not item.is_dir() and (item == folder or step_in_name(item) is not None)]:
        text = f"{files[0]} is a file, but a checkpoint would be saved there"
        raise ConfigError([Problem({"hydra.run.dir": str(run_folder)}, text, "Remove it.")])
    set_aside = {step_in_name(checkpoint) for checkpoint in besides}
    if later := [step for step in saved_steps(run_folder) if step > first_step and step not in set_aside]:
        text = f"has checkpoints of later steps already ({either(later)}), which would be lost"
        raise ConfigError([Problem({"hydra.run.dir": str(run_folder)}, text, "Choose another folder.")])


def refused(source: str, text: str, fix: str, key: str = RESTORE) -> ConfigError:
    """An error about the checkpoint that `key` names."""
    return ConfigError([Problem({key: source}, text, fix)])


def _finished(folder: Path) -> dict[int, Path]:
    items = sorted(folder.iterdir()) if folder.is_dir() else []
    steps = {item: step for item in items if (step := step_in_name(item)) is not None and item.is_dir()}
    return {step: item for item, step in steps.items() if is_finished(item)}
