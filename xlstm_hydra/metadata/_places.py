"""Where a run folder keeps its checkpoints and their metadata. Needs neither Orbax nor JAX."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.configs._problems import either

log = logging.getLogger("xlstm_hydra")

FOLDER = "checkpoints"
"""Name of the folder in a run folder."""

PREFIX = "checkpoint_"
"""What the name of a checkpoint of xlstm-jax begins with, before its step."""

RESTORE = "checkpoint.restore"
"""The key that a checkpoint is most often named by."""


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(checkpoint.name.removeprefix(PREFIX))


def saved_steps(run_folder: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    return sorted(saved_checkpoints(run_folder))


def saved_checkpoints(run_folder: Path) -> dict[int, Path]:
    """The finished checkpoints of a run, of ours or of xlstm-jax, by step."""
    folder = run_folder / FOLDER
    items = sorted(folder.iterdir()) if folder.is_dir() else []
    return {step_of(item): item for item in items if _has_step(item) and _is_finished(item)}


def sibling_checkpoints(checkpoint: Path) -> dict[int, Path]:
    """The finished checkpoints of the run that a checkpoint belongs to, itself among them, by step."""
    folder = checkpoint.parent
    return saved_checkpoints(folder.parent) if folder.name == FOLDER else {}


def find_checkpoint(place: str, key: str = RESTORE) -> Path:
    """The folder of the checkpoint that `RUN` (its latest), `RUN@STEP` or its own path names.

    Args:
        place: on this machine, or the address of a bucket such as `gs://bucket/runs/a@2000`.
        key: where the user typed it, for the message.

    Raises:
        ConfigError: there is no such run, or it has no such step.
    """
    with reached(place, key):
        return _find(place, key)


@contextmanager
def reached(place: str, key: str) -> Iterator[None]:
    """Make one message of whatever keeps a place from being read."""
    try:
        yield
    except (OSError, ImportError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        fix = "gs:// and s3:// need pip install 'xlstm-hydra[remote]'." if "://" in place else ""
        text = f"unknown storage {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise refused(place, f"cannot be read: {text}", fix, key) from None


def _find(place: str, key: str) -> Path:
    run, wanted = to_path(place), ""
    if _has_step(run) and (run / "metadata").is_dir() and _is_finished(run):
        return _absolute(run)
    saved = saved_checkpoints(run)
    name, _, step = place.rpartition("@")
    if not saved and name and (of_name := saved_checkpoints(to_path(name))):
        saved, wanted = of_name, step
        if not (step.isascii() and step.isdigit()):
            raise refused(place, f"{step!r} behind the @ is no step", f"Saved are steps {either(sorted(saved))}.", key)
    if not saved:
        meant = to_path(name) if name and step.isascii() and step.isdigit() else run
        text = f"no checkpoints in {_absolute(meant / FOLDER)}"
        raise refused(place, text, "Give the folder of a run that saved some.", key)
    if wanted and int(wanted) not in saved:
        raise refused(place, f"no checkpoint of step {wanted}", f"Saved are steps {either(sorted(saved))}.", key)
    return _absolute(saved[int(wanted) if wanted else max(saved)])


def to_path(place: str) -> Path:
    """A path on this machine, or one that behaves alike where the place is an address such as `gs://bucket/runs/a`."""
    if "://" not in place:
        return Path(place).expanduser()
    from etils import epath  # only for storage elsewhere

    return cast(Path, epath.Path(place))


def read_metadata_text(checkpoint: Path, key: str = RESTORE) -> str:
    """The metadata text of a checkpoint.

    Raises:
        ConfigError: it has none.
    """
    try:
        return (checkpoint / "metadata" / "metadata").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refused(str(checkpoint), f"its metadata cannot be read: {error}", "Choose another step.", key) from None


def refuse_to_overwrite(run_folder: Path, first_step: int) -> None:
    """Make sure that a run which begins after `first_step` would not write over a later checkpoint.

    Raises:
        ConfigError: it would.
    """
    if later := [step for step in saved_steps(run_folder) if step > first_step]:
        text = f"has checkpoints of later steps already ({either(later)}), which would be lost"
        raise ConfigError([Problem({"hydra.run.dir": str(run_folder)}, text, "Choose another folder.")])


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from writing in a folder. The lock goes with the process, however it ends.

    Raises:
        ConfigError: another run is writing there.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = "another run is writing in this folder"
            fix = "Wait until it has ended, or choose another folder."
            raise ConfigError([Problem({"hydra.run.dir": str(folder)}, text, fix)]) from None
        except OSError as error:  # a file system without locks, such as that of some clusters
            log.warning("%s: no lock, so a second run there would not be noticed (%s)", folder, error.strerror)
        yield


def refused(place: str, text: str, fix: str, key: str = RESTORE) -> ConfigError:
    """An error about the checkpoint that `key` names."""
    return ConfigError([Problem({key: place}, text, fix)])


def _absolute(path: Path) -> Path:
    return path.absolute() if isinstance(path, Path) else path


def _has_step(folder: Path) -> bool:
    digits = folder.name.removeprefix(PREFIX)
    return digits.isascii() and digits.isdigit()


def _is_finished(checkpoint: Path) -> bool:
    """Whether Orbax finished the save, which it marks with a file, and with a time in another one. On a disk it also
    renames the folder at the end, so an old checkpoint without either mark is finished there."""
    if (checkpoint / "commit_success.txt").is_file():
        return True
    try:
        state: Any = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return isinstance(checkpoint, Path)
    except (ValueError, RecursionError):  # it was being written
        return False
    return isinstance(state, dict) and state.get("commit_timestamp_nsecs") is not None


class DamagedCheckpoint(ConfigError):
    """Files of a checkpoint are missing or cut off."""


@contextmanager
def told_under(key: str, checkpoint: Path | str) -> Iterator[None]:
    """What is wrong with a checkpoint is told with the key that names it."""
    try:
        yield
    except ConfigError as error:
        where = f"{key}={checkpoint}"
        kind = DamagedCheckpoint if isinstance(error, DamagedCheckpoint) else ConfigError
        raise kind(Problem.about(where, str(found)) for found in error.problems) from error.__cause__


@contextmanager
def told_if_damaged(what: str) -> Iterator[None]:
    """What Orbax and TensorStore raise where files of a checkpoint are missing or cut off, as a `DamagedCheckpoint`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        # Orbax wraps what TensorStore says of an array in an error that is no more than an `Exception`.
        if type(error) is not Exception and not isinstance(error, OSError | KeyError | ValueError):
            raise
        reason = str(error.__cause__ or error).partition("\n")[0].partition(" [tensorstore_spec")[0]
        text, fix = (
            f"its {what} cannot be read: {reason.removesuffix('.')}",
            "The checkpoint may be cut off; choose another step.",
        )
        raise DamagedCheckpoint([Problem.about("", text, fix)]) from error
