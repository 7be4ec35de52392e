"""What the metadata beside a checkpoint says, typed, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlstm_hydra.configs import ConfigDict, ModelConfig

from ._format import FORMAT, read_metadata, read_run


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

    notes: tuple[str, ...] = ()
    """What was recorded, and why it stands in no group: it had no effect, or there is no counterpart."""

    @property
    def model(self) -> ModelConfig:
        """The model with its layout."""
        model = self.groups["model"]
        assert isinstance(model, ModelConfig)
        return model


def read_record(text: str) -> Record:
    """Read a metadata text, of ours or of xlstm-jax. Nothing that it names is imported.

    Raises:
        MetadataError: with the path of every field that is wrong, missing or unknown.
    """
    run = read_run(text)
    groups = {name: getattr(run, name) for name in ("parallel", *run.__dataclass_fields__)}
    return Record(writer=FORMAT, groups=groups, content=read_metadata(text))
