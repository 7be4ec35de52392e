"""Models of Hugging Face that are not in the form that is read: on the Hub, not fully downloaded, or pickled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

CONFIG = "config.json"
"""Name of the file with the config of a model."""

_ADDRESS = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)|hf:/)/(?:models/)?(?P<id>[\w.-]+/[\w.-]+)")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLED = ("*.bin", "*.pt", "*.pth")


def hub_address(path: str) -> tuple[str, str] | None:
    """Return what is wrong with a path that is an address on the Hub, and what to type; None for another path."""
    found = _ADDRESS.match(path)
    return None if found is None else ("is not a folder on this machine", _download(found["id"]))


def hub_id(path: Path) -> tuple[str, str] | None:
    """The same for a path that does not exist and looks like the name of a model on the Hub, OWNER/NAME."""
    name = str(path).partition("@")[0]
    if not _ID.fullmatch(name) or path.parent.exists():
        return None
    return (
        f"the folder {path.absolute()} does not exist",
        f"A model of the Hugging Face Hub is not downloaded here. {_download(name)}",
    )


def model_in(folder: Path) -> tuple[str, str] | None:
    """The same for a folder that holds a model of Hugging Face, whole or not, where a run is expected."""
    weights = [file.name for file in sorted(folder.glob("*.safetensors"))]
    if (folder / CONFIG).is_file() and (weights or pickled_in(folder)):
        text = "is a folder with a model of Hugging Face, not a run"
        return (
            text,
            "xlstm-metadata import FOLDER OUT makes a run of it; checkpoint.init_from=FOLDER takes its parameters.",
        )
    if weights:
        return f"has weights of Hugging Face ({_shown(weights)}), but no {CONFIG}", "Download the whole model."
    return missing_weights(folder) if pickled_in(folder) else None


def missing_weights(folder: Path) -> tuple[str, str]:
    """Return what is wrong with a folder without weights that can be read, and what to do."""
    if found := pickled_in(folder):
        text = f"has its weights in pickled files only ({_shown(found)}), which are not read because they can run code"
        fix = "Convert them, in Python: transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)."
        return text, fix
    if found := [file.name for file in sorted(folder.glob("*.safetensors"))]:
        text = f"has neither model.safetensors nor model.safetensors.index.json, but {_shown(found)}"
        return text, "Download the index too, or rename the one file to model.safetensors."
    return "has no model.safetensors", "Download the whole model: hf download OWNER/NAME --local-dir FOLDER."


def pickled_in(folder: Path) -> list[str]:
    """Names of the pickled weights in a folder."""
    return sorted(
        file.name for pattern in _PICKLED for file in folder.glob(pattern) if "training_args" not in file.name
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _download(name: str) -> str:
    folder = name.rpartition("/")[2]
    return f"Download it with hf download {name} --local-dir {folder}, and give {folder}."
