"""Fields of a record that this version does not know, and that are ignored."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from xlstm_hydra._logging import log


def unset_note(path: str) -> str:
    """The note about an unknown field that is null."""
    return f"{path}=null: this version does not know the field, and null has no effect"


def log_ignored(path: str, unset: Iterable[str], unknown: Sequence[str]) -> None:
    """Log the unknown fields of a record that are ignored, once for each record.

    Args:
        path: of the record, for messages.
        unset: paths of those that are null.
        unknown: paths of those that a lenient reading let pass.
    """
    for field in unset:
        _log_once(f"{path}: {unset_note(field)}")
    if unknown:
        _log_once(f"{path}: ignored unknown fields: {', '.join(unknown)}")


@functools.cache
def _log_once(text: str) -> None:
    log.warning("%s", text)
