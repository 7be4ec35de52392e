"""Fields of a record that this version does not know: those that are ignored, and how to ignore the others."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from xlstm_hydra._logging import log
from xlstm_hydra._printable import printable
from xlstm_hydra.problems import ConfigError, Problem, UnknownField

from ._paths import RESTORE

_WAYS = {
    "checkpoint": "lenient=True ignores unknown fields.",
    RESTORE: "checkpoint.lenient=true ignores unknown fields.",
    "hydra.searchpath": "ckpt://RUN?lenient ignores unknown fields.",
}
"""How to read a record with unknown fields, by the key that names its checkpoint."""


def unset_note(path: str) -> str:
    """The note about an unknown field that is null."""
    return f"{path}=null: this version does not know the field, and null has no effect"


def log_ignored(place: str, unset: Iterable[str], unknown: Sequence[str]) -> None:
    """Log the unknown fields of a record that are ignored, once for each record.

    Args:
        place: of the record, for messages.
        unset: paths of those that are null.
        unknown: paths of those that a lenient reading let pass.
    """
    for path in unset:
        _log_once(f"{place}: {unset_note(path)}")
    if unknown:
        _log_once(f"{place}: ignored unknown fields: {', '.join(unknown)}")


@functools.cache
def _log_once(text: str) -> None:
    log.warning("%s", printable(text))


@contextmanager
def unknown_fields_explained(key: str) -> Iterator[None]:
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
