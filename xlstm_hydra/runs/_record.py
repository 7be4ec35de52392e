"""Records: the typed content of a checkpoint's metadata, written by xlstm-hydra or xlstm-jax."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xlstm_hydra.codec import collect
from xlstm_hydra.configs import ModelConfig, RecordedConfigs, RunConfig, read_configs
from xlstm_hydra.formats import FORMAT, STRICT, VERSION, MetadataError, log_ignored, problems_beside
from xlstm_hydra.problems import ConfigError, Problem, UnknownField

from ._find import find_checkpoint, reached
from ._paths import RESTORE, read_metadata_text, refused, to_path
from ._verify import attributed_to

_WAYS = {
    "checkpoint": "lenient=True ignores unknown fields.",
    RESTORE: "checkpoint.lenient=true ignores unknown fields.",
    "hydra.searchpath": "ckpt://RUN?lenient ignores unknown fields.",
}
"""Fix for metadata with unknown fields, by the key that the checkpoint was given with."""


@dataclass(frozen=True, kw_only=True)
class Record(RecordedConfigs):
    """The typed content of a checkpoint's metadata, written by xlstm-hydra or xlstm-jax."""

    @property
    def model(self) -> ModelConfig:
        """The model config with its layout."""
        model = self.groups["model"]
        assert isinstance(model, ModelConfig)
        return model


def refuse_to_continue(writer: str, path: str, key: str) -> None:
    """Check that training can continue from a checkpoint, which requires more than the parameters.

    Raises:
        ConfigError: another program wrote the checkpoint.
    """
    if writer != FORMAT:
        text = f"{writer} wrote it, and its optimizer state and data position cannot be used here"
        raise refused(path, text, f"To start from its parameters, use --from {path} checkpoint.init_from={path}.", key)


def read_record(text: str | bytes, *, lenient: bool = False, classes: Iterable[type] = ()) -> Record:
    """Read a metadata text written by xlstm-hydra or xlstm-jax. No module is imported unless `allow_modules` allows it.

    Args:
        text: the metadata, as a string or as the bytes of the file.
        lenient: ignore unknown fields, and list them in `Record.unknown`.
        classes: model and config classes that the text may refer to, in addition to ours and those allowed with
            `register_model_class` and `allow_modules`.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    return Record(**vars(read_configs(text, lenient=lenient, classes=classes)))


def record_of(checkpoint: Path, key: str, *, lenient: bool = False, classes: Iterable[type] = ()) -> Record:
    """Return the record of a checkpoint.

    Args:
        checkpoint: the checkpoint folder.
        key: the config key or option that the checkpoint was given with, for messages.
        lenient: see `read_record`.
        classes: see `read_record`.

    Raises:
        ConfigError: the checkpoint has no metadata, or the metadata cannot be read.
    """
    text = read_metadata_text(checkpoint, key)
    return _read_record_at(checkpoint, text, key, lenient=lenient, classes=classes)


def record_named(source: str, key: str, *, lenient: bool = False) -> Record:
    """Return the record of a checkpoint or of a metadata file.

    Args:
        source: a checkpoint (see `find_checkpoint`), or the path of a metadata file.
        key: the config key or flag that supplied `source`, for messages.
        lenient: see `read_record`.

    Raises:
        ConfigError: there is no metadata, or the metadata cannot be read.
    """
    with reached(source, key):
        file = to_path(source)
        text = file.read_bytes() if file.is_file() else None
    if text is None:
        return record_of(find_checkpoint(source, key), key, lenient=lenient)
    return _read_record_at(file, text, key, lenient=lenient)


def _read_record_at(
    path: Path, text: str | bytes, key: str, *, lenient: bool = False, classes: Iterable[type] = ()
) -> Record:
    """Read the metadata text of a checkpoint or file, and log the ignored fields.

    Args:
        path: the checkpoint or the file, for messages.
        text: see `read_record`.
        key: the config key or option that the path was given with, for messages.
        lenient: see `read_record`.
        classes: see `read_record`.

    Raises:
        ConfigError: the metadata cannot be read.
    """
    with attributed_to(key, path), _unknown_fields_explained(key):
        record = read_record(text, lenient=lenient, classes=classes)
    log_ignored(str(path), record.unset, record.unknown)
    return record


def write_metadata(run: RunConfig, **extra: Any) -> dict[str, Any]:
    """Return the metadata of a run as plain JSON values, without the addresses and ids of its processes.

    Args:
        run: the config of the run.
        extra: plain JSON values to record in addition to the config. The allowed keys are those of `formats`.

    Raises:
        ValueError: a value cannot be written as JSON, or the written metadata could not be read back.
    """
    config = run.to_dict() | {"distributed": run.distributed.lasting().to_dict()}
    content = {"format": FORMAT, "version": VERSION, "config": config, **extra}
    json.dumps(content, allow_nan=False)  # an invalid value would fail later, in the saving thread
    wrong = [problem.at("config") for problem in collect(RunConfig, config, STRICT)[1]]
    if problems := [*wrong, *problems_beside(content)]:
        raise MetadataError(problems)
    return content


@contextmanager
def _unknown_fields_explained(key: str) -> Iterator[None]:
    """Extend an error about unknown fields with the setting that ignores them.

    Args:
        key: the config key or option that the checkpoint was given with.
    """
    try:
        yield
    except ConfigError as error:
        raise type(error)(_with_way_out(error.problems, _WAYS.get(key, "--lenient ignores unknown fields."))) from None


def _with_way_out(problems: Sequence[Problem], way: str) -> list[Problem]:
    """Append the fix `way` to the last problem about an unknown field."""
    last = next((problem for problem in reversed(problems) if isinstance(problem, UnknownField)), None)
    return [replace(each, fix=f"{each.fix} {way}".strip()) if each is last else each for each in problems]
