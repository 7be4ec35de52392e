"""Verification of what is read of a checkpoint, while it is read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from xlstm_hydra._jax_internals import distributed_state
from xlstm_hydra.runs import THREADS, Entry, Finding, damaged, find_damage, finder, manifest_of, note_missing, select

from ._hugging_face import is_hugging_face

_LARGE = 2**20
"""Size in bytes from which a file is verified while it is read; smaller ones are verified before."""
_PATIENCE_SECONDS = 3600
"""Time that a process waits for the others, which verify other files of a slow disk."""
_next = itertools.count().__next__
"""Gives the number of the next verification, which all processes do in the same order: a key is used once."""


@contextmanager
def verified(checkpoint: Path, key: str, *items: str) -> Iterator[None]:
    """Verify some items of a checkpoint that are read inside. A checkpoint without a manifest is noted in the log.

    One process verifies large files at the same time, so that they are read from the disk once. Several processes do it
    before: each verifies a share of the files, and all know the result.

    Args:
        checkpoint: its folder.
        key: where the user named it, for messages.
        items: the folders in it that are read; all, if none is given.

    Raises:
        DamageFound: a file differs from the manifest, whatever else was raised inside.
    """
    if is_hugging_face(checkpoint):
        yield
        return
    manifest = manifest_of(checkpoint, key)
    if manifest is None:
        note_missing(checkpoint)
        yield
        return
    entries = select(manifest, items)
    before, meanwhile = _split(entries) if _processes() == 1 else (_share(entries), {})
    if found := _of_all([*find_damage(checkpoint, before)]):
        raise damaged(checkpoint, found, key)
    with ThreadPoolExecutor(THREADS) as pool:
        pending = pool.map(finder(checkpoint), meanwhile.items())
        try:
            yield
        except Exception as error:  # it may come from the damage; if not, it is not of interest here
            if found := [*filter(None, pending)]:
                raise damaged(checkpoint, found, key) from error
            raise
        if found := [*filter(None, pending)]:
            raise damaged(checkpoint, found, key)


def _split(entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], dict[str, Entry]]:
    large = {name: entry for name, entry in entries.items() if entry.size >= _LARGE}
    return {name: entry for name, entry in entries.items() if name not in large}, large


def _share(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The files that this process verifies: of those in order of their size, one of as many as there are processes."""
    names = sorted(entries, key=lambda name: (entries[name].size, name))
    return {name: entries[name] for name in names[distributed_state().process_id :: _processes()]}


def _processes() -> int:
    state = distributed_state()
    return 1 if state.client is None else state.num_processes


def _of_all(found: list[Finding]) -> list[Finding]:
    """What all processes have found, each in its share, in the same order everywhere."""
    if _processes() == 1:
        return found
    state, key = distributed_state(), f"xlstm_hydra/verified/{_next()}"
    state.client.key_value_set(f"{key}/{state.process_id}", json.dumps(found))
    keys = [f"{key}/{number}" for number in range(_processes())]
    texts = [state.client.blocking_key_value_get(each, 1000 * _PATIENCE_SECONDS) for each in keys]
    return [Finding(*each) for text in texts for each in json.loads(text)]
