"""What the metadata beside a checkpoint says, typed, whoever wrote it."""

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
"""How to read a record with unknown fields, by the key that names its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Record(RecordedConfigs):
    """What the metadata beside a checkpoint says, typed, whoever wrote it."""

    @property
    def model(self) -> ModelConfig:
        """The model with its layout."""
        model = self.groups["model"]
        assert isinstance(model, ModelConfig)
        return model


def refuse_to_continue(writer: str, path: str, key: str) -> None:
    """Make sure that training can continue from a checkpoint, which takes more than its parameters.

    Raises:
        ConfigError: another program wrote it.
    """
    if writer != FORMAT:
        text = f"{writer} wrote it, and its optimizer state and position in the data are none of ours"
        raise refused(path, text, f"To begin with its parameters: --from {path} checkpoint.init_from={path}", key)


def read_record(text: str | bytes, *, lenient: bool = False, classes: Iterable[type] = ()) -> Record:
    """Read a metadata text, of ours or of xlstm-jax. Nothing that it names is imported, unless `allow_modules` says so.

    Args:
        text: the metadata, as text or as it stands on disk.
        lenient: let fields pass that nobody knows, and list them in `Record.unknown`.
        classes: model and config classes that it may name beside ours and those that `register_model_class` and
            `allow_modules` allow.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    return Record(**vars(read_configs(text, lenient=lenient, classes=classes)))


def record_of(checkpoint: Path, key: str, *, lenient: bool = False, classes: Iterable[type] = ()) -> Record:
    """Return the record of a checkpoint.

    Args:
        checkpoint: its folder.
        key: where the user named it, for messages.
        lenient: see `read_record`.
        classes: see `read_record`.

    Raises:
        ConfigError: it has none, or one that cannot be read.
    """
    text = read_metadata_text(checkpoint, key)
    return _read_record_at(checkpoint, text, key, lenient=lenient, classes=classes)


def record_named(source: str, key: str, *, lenient: bool = False) -> Record:
    """Return the record of the checkpoint, or the file with a record, that a source names.

    Args:
        source: see `find_checkpoint`, or the path of a file.
        key: where the user typed it, for messages.
        lenient: see `read_record`.

    Raises:
        ConfigError: there is none, or it cannot be read.
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
    """Read the metadata text of a checkpoint or of a file, and log the fields in it that are ignored.

    Args:
        path: the checkpoint or the file, for messages.
        text: see `read_record`.
        key: where the user named it, for messages.
        lenient: see `read_record`.
        classes: see `read_record`.

    Raises:
        ConfigError: it cannot be read.
    """
    with attributed_to(key, path), _unknown_fields_explained(key):
        record = read_record(text, lenient=lenient, classes=classes)
    log_ignored(str(path), record.unset, record.unknown)
    return record


def write_metadata(run: RunConfig, **extra: Any) -> dict[str, Any]:
    """Everything that a run was made from, as plain JSON values. Where its processes were is no part of that.

    Args:
        run: the config.
        extra: what else belongs to the record, of those that `formats` allows beside the config. Plain JSON values.

    Raises:
        ValueError: a value that JSON cannot hold, or that would not be read back.
    """
    config = run.to_dict() | {"distributed": run.distributed.lasting().to_dict()}
    content = {"format": FORMAT, "version": VERSION, "config": config, **extra}
    json.dumps(content, allow_nan=False)  # a bad value would otherwise fail later, in the thread that writes
    wrong = [problem.at("config") for problem in collect(RunConfig, config, STRICT)[1]]
    if problems := [*wrong, *problems_beside(content)]:
        raise MetadataError(problems)
    return content


@contextmanager
def _unknown_fields_explained(key: str) -> Iterator[None]:
    """Add to an error about unknown fields how to read the record all the same.

    Args:
        key: where the user named the record.
    """
    try:
        yield
    except ConfigError as error:
        raise type(error)(_with_way_out(error.problems, _WAYS.get(key, "--lenient ignores unknown fields."))) from None


def _with_way_out(problems: Sequence[Problem], way: str) -> list[Problem]:
    """The problems, where the last one of an unknown field also has the way out."""
    last = next((problem for problem in reversed(problems) if isinstance(problem, UnknownField)), None)
    return [replace(each, fix=f"{each.fix} {way}".strip()) if each is last else each for each in problems]
