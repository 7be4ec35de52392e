"""Messages about Hugging Face models that cannot be read: not downloaded, only partly downloaded, or pickled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

CONFIG = "config.json"
"""Name of the config file of a Hugging Face model."""

_ADDRESS = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(?:models/)?(?P<id>[\w.-]+/[\w.-]+)")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLED = ("*.bin", "*.pt", "*.pth")


def hub_address(path: str) -> tuple[str, str] | None:
    """Return the problem and the fix for a path that is a Hub address. None for any other path."""
    found = _ADDRESS.match(path)
    return None if found is None else ("is not a folder on this machine", _download(found["id"]))


def hub_id(path: Path) -> tuple[str, str] | None:
    """Return the problem and the fix for a path that does not exist and looks like the Hub id of a model, OWNER/NAME.
    None for any other path."""
    name = str(path).partition("@")[0]
    if not _ID.fullmatch(name) or path.parent.exists():
        return None
    return (
        f"the folder {path.absolute()} does not exist",
        f"Models on the Hugging Face Hub are not downloaded automatically. {_download(name)}",
    )


def model_in(folder: Path) -> tuple[str, str] | None:
    """Return the problem and the fix for a folder that was given as a run, but contains a complete or incomplete
    Hugging Face model. None for any other folder."""
    weights = [file.name for file in sorted(folder.glob("*.safetensors"))]
    if (folder / CONFIG).is_file() and (weights or pickled_in(folder)):
        text = "is a folder with a Hugging Face model, not a run"
        return (
            text,
            "xlstm-metadata import FOLDER OUT converts it to a run; checkpoint.init_from=FOLDER uses its parameters.",
        )
    if weights:
        return f"has Hugging Face weights ({_shown(weights)}), but no {CONFIG}", "Download the whole model."
    return missing_weights(folder) if pickled_in(folder) else None


def missing_weights(folder: Path) -> tuple[str, str]:
    """Return the problem and the fix for a folder without readable weights."""
    if found := pickled_in(folder):
        text = f"has only pickled weights ({_shown(found)}), which are not read because they can run code"
        fix = "Convert them, in Python: transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)."
        return text, fix
    if found := [file.name for file in sorted(folder.glob("*.safetensors"))]:
        text = f"has neither model.safetensors nor model.safetensors.index.json, but {_shown(found)}"
        return text, "Download the index too, or, if there is only one file, rename it to model.safetensors."
    return "has no model.safetensors", "Download the whole model: hf download OWNER/NAME --local-dir FOLDER."


def pickled_in(folder: Path) -> list[str]:
    """Return the names of the files with pickled weights in a folder."""
    return sorted(
        file.name for pattern in _PICKLED for file in folder.glob(pattern) if "training_args" not in file.name
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _download(name: str) -> str:
    folder = name.rpartition("/")[2]
    return f"Download the model with hf download {name} --local-dir {folder}, and give {folder}."
