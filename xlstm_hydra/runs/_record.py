"""What the metadata beside a checkpoint says, typed, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm_hydra.configs import ConfigDict, ModelConfig
from xlstm_hydra.formats import FORMAT, WRITER, decode_run, error, is_xlstm_jax, parse, read_xlstm_jax, upgrade

from ._ignored import log_ignored, unknown_fields_explained, unset_note
from ._paths import read_metadata_text, refused
from ._verify import attributed_to


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the metadata beside a checkpoint says, typed, whoever wrote it."""

    writer: str
    """xlstm_hydra or xlstm_jax."""

    groups: Mapping[str, ConfigDict]
    """The config of every group that was recorded, by the group's name: all of them in our own metadata; those that
    xlstm-jax has too (model, parallel, optimizer, scheduler, trainer, checkpoint, logger) in its."""

    content: Mapping[str, Any]
    """The whole text as plain JSON values."""

    unknown: tuple[str, ...] = ()
    """Paths of fields that nobody knows, which only a lenient reading lets pass."""

    unset: tuple[str, ...] = ()
    """Paths of fields that nobody knows and that are null, so that they have no effect."""

    notes: tuple[str, ...] = ()
    """What was recorded, and why it stands in no group: it had no effect, or there is no counterpart."""

    @property
    def model(self) -> ModelConfig:
        """The model with its layout."""
        model = self.groups["model"]
        assert isinstance(model, ModelConfig)
        return model


def refuse_to_continue(writer: str, place: str, key: str) -> None:
    """Make sure that training can go on from a checkpoint, which takes more than its parameters.

    Raises:
        ConfigError: another program wrote it.
    """
    if writer != FORMAT:
        text = f"{writer} wrote it, and its optimizer state and position in the data are none of ours"
        raise refused(place, text, f"To begin with its parameters: --from {place} checkpoint.init_from={place}", key)


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
    content = parse(text)
    try:
        if is_xlstm_jax(content):
            groups, reading = read_xlstm_jax(content, lenient)
            return Record(
                writer=WRITER,
                groups=groups,
                content=content,
                unknown=tuple(reading.unknown),
                unset=tuple(reading.unset),
                notes=tuple(dict.fromkeys([*reading.notes, *map(unset_note, reading.unset)])),
            )
        content = upgrade(content)
        run, unknown = decode_run(content, classes, lenient)
    except RecursionError:
        raise error("", "nested too deeply to be metadata") from None
    unset = tuple(key for problem in unknown if problem.is_null for key in problem.keys)
    return Record(
        writer=FORMAT,
        groups=run.groups(),
        content=content,
        unknown=tuple(key for problem in unknown if not problem.is_null for key in problem.keys),
        unset=unset,
        notes=tuple(map(unset_note, unset)),
    )


def record_of(checkpoint: Path, key: str, *, lenient: bool = False, classes: Iterable[type] = ()) -> Record:
    """The record of a checkpoint.

    Args:
        checkpoint: its folder.
        key: where the user named it, for messages.
        lenient: see `read_record`.
        classes: see `read_record`.

    Raises:
        ConfigError: it has none, or one that cannot be read.
    """
    text = read_metadata_text(checkpoint, key)
    return read_record_at(checkpoint, text, key, lenient=lenient, classes=classes)


def read_record_at(
    place: Path, text: str | bytes, key: str, *, lenient: bool = False, classes: Iterable[type] = ()
) -> Record:
    """Read the metadata text of a checkpoint or of a file, and log the fields in it that are ignored.

    Args:
        place: the checkpoint or the file, for messages.
        text: see `read_record`.
        key: where the user named it, for messages.
        lenient: see `read_record`.
        classes: see `read_record`.

    Raises:
        ConfigError: it cannot be read.
    """
    with attributed_to(key, place), unknown_fields_explained(key):
        record = read_record(text, lenient=lenient, classes=classes)
    log_ignored(str(place), record.unset, record.unknown)
    return record


def read_model(text: str | bytes) -> ModelConfig:
    """The model that a metadata text records, of ours or of xlstm-jax, with its class as a dotted path.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    record = read_record(text)
    log_ignored("metadata", record.unset, record.unknown)
    return record.model
