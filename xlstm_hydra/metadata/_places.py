"""Where a run folder keeps its checkpoints and their metadata. Needs neither Orbax nor JAX."""

from __future__ import annotations

from pathlib import Path

from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.configs._problems import either

FOLDER = "checkpoints"
"""Name of the folder in a run folder."""


PREFIX = "checkpoint_"
"""What the name of a checkpoint of xlstm-jax begins with, before its step."""


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(checkpoint.name.removeprefix(PREFIX))


def saved_steps(run_folder: Path) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    return sorted(_saved(run_folder))


def _saved(run_folder: Path) -> dict[int, Path]:
    """The finished checkpoints of a run, of ours or of xlstm-jax, by step."""
    folder = run_folder / FOLDER
    items = list(folder.iterdir()) if folder.is_dir() else []
    digits = {item: item.name.removeprefix(PREFIX) for item in items}
    return {int(text): item for item, text in digits.items() if text.isascii() and text.isdigit()}


def find_checkpoint(place: str) -> Path:
    """The folder of the checkpoint that `RUN` (its latest) or `RUN@STEP` names.

    Raises:
        ConfigError: there is no such run, or it has no such step.
    """
    run, wanted = Path(place).expanduser(), ""
    if not saved_steps(run):
        name, _, step = place.rpartition("@")
        if name and step.isascii() and step.isdigit():
            run, wanted = Path(name).expanduser(), step
    steps = saved_steps(run)
    if not steps:
        raise refused(
            place, f"no checkpoints in {(run / FOLDER).absolute()}", "Give the folder of a run that saved some."
        )
    if wanted and int(wanted) not in steps:
        raise refused(place, f"no checkpoint of step {wanted}", f"Saved are steps {either(steps)}.")
    return _saved(run)[int(wanted) if wanted else steps[-1]].absolute()


def read_metadata_text(checkpoint: Path) -> str:
    """The metadata text of a checkpoint.

    Raises:
        ConfigError: it has none.
    """
    try:
        return (checkpoint / "metadata" / "metadata").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise refused(str(checkpoint), f"its metadata cannot be read: {error}", "Choose another step.") from None


def refuse_to_overwrite(run_folder: Path, first_step: int) -> None:
    """Make sure that a run which begins after `first_step` would not write over a later checkpoint.

    Raises:
        ConfigError: it would.
    """
    if later := [step for step in saved_steps(run_folder) if step > first_step]:
        text = f"has checkpoints of later steps already ({either(later)}), which would be lost"
        raise ConfigError([Problem({"hydra.run.dir": str(run_folder)}, text, "Choose another folder.")])


def refused(place: str, text: str, fix: str) -> ConfigError:
    """An error about `checkpoint.restore`."""
    return ConfigError([Problem({"checkpoint.restore": place}, text, fix)])
