"""Verification of checkpoints: compare the files of a checkpoint with its manifest, and report damage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from xlstm_hydra._logging import log
from xlstm_hydra.problems import ConfigError, Problem

from ._manifest import MANIFEST, THREADS, BadManifest, Entry, entry_of, list_files, read_entry, read_manifest

MARK = {"manifest": MANIFEST}
"""Entry in the custom metadata of a checkpoint that gets a manifest after Orbax has finished saving it."""

_UNVERIFIED = {"checkpoint": "verify=False", **dict.fromkeys(("RUN", "A", "B"), "--no-verify")}
"""Setting that turns verification off, by the key that the checkpoint was given with."""

_LARGE = 2**20
"""Size in bytes from which a file is verified while it is being read. Smaller files are verified before they are
read."""

_UNLISTED = f"is not listed in {MANIFEST}"

_is_on: ContextVar[bool] = ContextVar("verification", default=True)


class DamagedCheckpoint(ConfigError):
    """Files of a checkpoint are missing, incomplete or altered."""


class DamageFound(DamagedCheckpoint):
    """Files of a checkpoint differ from the manifest. If one process finds damage, all processes raise this error."""


@contextmanager
def attributed_to(key: str, checkpoint: Path | str) -> Iterator[None]:
    """Add a checkpoint, and the key that it was given with, to the problems raised inside the `with` block."""
    try:
        yield
    except ConfigError as error:
        where = f"{key}={checkpoint}"
        kind = type(error) if isinstance(error, DamagedCheckpoint) else ConfigError
        raise kind(Problem.about(where, str(found)) for found in error.problems) from error.__cause__


class Finding(NamedTuple):
    """A damaged, missing or unexpected file of a checkpoint."""

    file: str
    """Path of the file relative to the checkpoint."""

    problem: str
    """The problem, as the rest of a sentence that starts with the path."""

    def __str__(self) -> str:
        return f"{self.file} {self.problem}"


@contextmanager
def verification(on: bool) -> Iterator[None]:
    """Turn the verification of checkpoints on or off inside the `with` block. Verification is on by default. Inside a
    block that turns it off, it cannot be turned on again."""
    token = _is_on.set(on and _is_on.get())
    try:
        yield
    finally:
        _is_on.reset(token)


def _manifest_of(checkpoint: Path, key: str) -> dict[str, Entry] | None:
    """Return the manifest of a checkpoint, or None if there is none or verification is off.

    Raises:
        DamageFound: the manifest is damaged.
    """
    if not _is_on.get():
        return None
    try:
        return read_manifest(checkpoint)
    except BadManifest as error:
        raise _damaged(checkpoint, [Finding(MANIFEST, str(error))], key) from None


def _note_missing(checkpoint: Path) -> None:
    """Log that the files of a checkpoint without a manifest are not verified."""
    if not _is_on.get():
        return
    if is_marked(checkpoint):
        text = "%s has no %s: the save was interrupted before writing it, or it was removed. The files are not verified"
        log.warning(text, checkpoint, MANIFEST)
    else:
        log.info("%s has no %s, so its files are not verified", checkpoint, MANIFEST)


def is_marked(checkpoint: Path) -> bool:
    """True if the program that saved a checkpoint intended to write a manifest."""
    try:
        content = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_bytes())
        return content["custom_metadata"].items() >= MARK.items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def read_verified(checkpoint: Path, name: str, key: str) -> bytes:
    """Return the content of a small checkpoint file after verifying it.

    Raises:
        DamageFound: the file differs from the manifest.
        OSError: the file cannot be read.
    """
    content, manifest = (checkpoint / name).read_bytes(), _manifest_of(checkpoint, key)
    if manifest is not None and (found := _difference(name, manifest.get(name), entry_of(content))):
        raise _damaged(checkpoint, [found], key)
    return content


def damage_in(checkpoint: Path, *items: str) -> list[Finding]:
    """Return the damage in the files of some items of a checkpoint, or in all files if no item is given. Damage in the
    manifest is returned alone. Empty if verification is off or there is no manifest.

    Raises:
        OSError: an existing file cannot be read.
    """
    try:
        manifest = read_manifest(checkpoint) if _is_on.get() else None
    except BadManifest as error:
        return [Finding(MANIFEST, str(error))]
    return [] if manifest is None else [*_find_damage(checkpoint, _select(manifest, items))]


def _select(manifest: Mapping[str, Entry], items: Sequence[str]) -> dict[str, Entry]:
    """Return the manifest entries of the files in some items and of the files at the top level of the checkpoint. If no
    item is given, return all entries."""
    wanted = {*items, ""} if items else {name.partition("/")[0] if "/" in name else "" for name in manifest}
    return {name: entry for name, entry in manifest.items() if name.rpartition("/")[0].partition("/")[0] in wanted}


def _find_damage(checkpoint: Path, entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Compare files with their manifest entries in parallel, and yield the damage.

    Raises:
        OSError: an existing file cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        yield from filter(None, pool.map(_finder(checkpoint), entries.items()))


def _finder(checkpoint: Path) -> Callable[[tuple[str, Entry]], Finding | None]:
    """Return a function that takes the path and manifest entry of a file, and returns the damage of the file or
    None."""

    def find(item: tuple[str, Entry]) -> Finding | None:
        name, expected = item
        try:
            return _difference(name, expected, read_entry(checkpoint, name))
        except BadManifest as error:
            return Finding(name, str(error))
        except (FileNotFoundError, NotADirectoryError):
            return Finding(name, "is missing")

    return find


def _difference(name: str, expected: Entry | None, found: Entry) -> Finding | None:
    if expected is None:
        return Finding(name, _UNLISTED)
    if expected.size != found.size:
        return Finding(name, f"is damaged: it has {found.size:,} bytes, expected {expected.size:,}")
    if expected != found:
        return Finding(name, f"is damaged: its digest is {found.digest}, expected {expected.digest}")
    return None


def _damaged(checkpoint: Path, found: Sequence[Finding], key: str) -> DamageFound:
    """Return an error about a damaged checkpoint that names the first damaged file."""
    more = f" (and {len(found) - 1} more files)" if len(found) > 1 else ""
    way_out = f"Choose another step, or read this one anyway with {_UNVERIFIED.get(key, 'checkpoint.verify=false')}."
    return DamageFound([Problem.about(f"{key}={checkpoint}", f"{found[0]}{more}", way_out)])


@contextmanager
def verified_files(
    checkpoint: Path, key: str, items: Sequence[str], processes: tuple[int, int], of_all: Callable[[str], list[str]]
) -> Iterator[None]:
    """Verify the items of a checkpoint that are read inside the `with` block. If the checkpoint has no manifest, the
    items are not verified, and this is logged.

    A single process verifies large files while they are being read, so that they are read from the disk only once. With
    several processes, all files are verified beforehand: each process verifies a share, and all processes receive all
    results.

    Args:
        checkpoint: the checkpoint folder.
        key: the config key or option that the checkpoint was given with, for messages.
        items: the names of the items that are read. Empty: all items.
        processes: the id of this process and the number of processes.
        of_all: a collective function: every process calls it with a text, and it returns the texts of all processes.

    Raises:
        DamageFound: a file differs from the manifest. This error replaces any exception raised inside the block.
    """
    manifest = _manifest_of(checkpoint, key)
    if manifest is None:
        _note_missing(checkpoint)
        yield
        return
    entries = _select(manifest, items)
    before, meanwhile = _split(entries) if processes[1] == 1 else (_share(entries, *processes), {})
    texts = of_all(json.dumps([*_find_damage(checkpoint, before)]))
    if found := [Finding(*each) for text in texts for each in json.loads(text)]:
        raise _damaged(checkpoint, found, key)
    with ThreadPoolExecutor(THREADS) as pool:
        pending = pool.map(_finder(checkpoint), meanwhile.items())
        try:
            yield
        except Exception as error:  # the damage may have caused it
            if found := [*filter(None, pending)]:
                raise _damaged(checkpoint, found, key) from error
            raise
        if found := [*filter(None, pending)]:
            raise _damaged(checkpoint, found, key)


def _split(entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], dict[str, Entry]]:
    large = {name: entry for name, entry in entries.items() if entry.size >= _LARGE}
    return {name: entry for name, entry in entries.items() if name not in large}, large


def _share(entries: Mapping[str, Entry], number: int, count: int) -> dict[str, Entry]:
    """Return the entries of the files that process `number` of `count` verifies: every `count`-th file in order of
    size."""
    names = sorted(entries, key=lambda name: (entries[name].size, name))
    return {name: entries[name] for name in names[number::count]}


@dataclass
class Verdict:
    """Result of the verification of a whole checkpoint."""

    num_files: int = 0
    """Number of files in the manifest."""

    damage: list[Finding] = field(default_factory=list)
    """Files that are damaged or missing, or that Orbax may read but the manifest does not list."""

    notes: list[Finding] = field(default_factory=list)
    """Unusual but harmless files."""


def judge(checkpoint: Path) -> Verdict:
    """Verify all files of a checkpoint."""
    try:
        manifest = read_manifest(checkpoint)
    except BadManifest as error:
        return Verdict(damage=[Finding(MANIFEST, str(error))])
    if manifest is None and is_marked(checkpoint):
        text = "is missing: the save has not finished, or was interrupted, or the file was removed"
        return Verdict(damage=[Finding(MANIFEST, text)])
    if manifest is None:
        text = "is missing, as in checkpoints of earlier versions and of xlstm-jax: the files cannot be verified"
        return Verdict(notes=[Finding(MANIFEST, text)])
    verdict = Verdict(len(manifest), [*_find_damage(checkpoint, manifest)])
    items = {name.partition("/")[0] for name in manifest if "/" in name}
    for name in list_files(checkpoint):
        if name not in manifest:
            is_read = name.partition("/")[0] in items and not name.rpartition("/")[2].startswith(".")
            (verdict.damage if is_read else verdict.notes).append(Finding(name, _UNLISTED))
    return verdict
