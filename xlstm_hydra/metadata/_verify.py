"""Verification of the files of a checkpoint against its manifest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from xlstm_hydra.configs import Problem

from ._damage import DamageFound
from ._manifest import MANIFEST, THREADS, BadManifest, Entry, entry_of, list_files, read_entry, read_manifest

log = logging.getLogger("xlstm_hydra")

MARK = {"manifest": MANIFEST}
"""What the custom metadata of a checkpoint says that gets a manifest after Orbax has finished it."""

_UNVERIFIED = {"checkpoint": "verify=False", **dict.fromkeys(("RUN", "A", "B"), "--no-verify")}
"""How the verification is turned off, by the key that names the checkpoint."""

_is_on: ContextVar[bool] = ContextVar("verification", default=True)


@contextmanager
def verification(on: bool) -> Iterator[None]:
    """Verify what is read of checkpoints inside, or do not. On unless set; what is turned off outside stays off."""
    token = _is_on.set(on and _is_on.get())
    try:
        yield
    finally:
        _is_on.reset(token)


def manifest_of(checkpoint: Path, key: str) -> dict[str, Entry] | None:
    """Return the manifest that the files of a checkpoint are verified with; None if there is none, or if verification
    is off.

    Raises:
        DamageFound: the manifest cannot be used.
    """
    if not _is_on.get():
        return None
    try:
        return read_manifest(checkpoint)
    except BadManifest as error:
        raise damaged(checkpoint, [f"{MANIFEST} {error}"], key) from None


def note_missing(checkpoint: Path) -> None:
    """Log that the files of a checkpoint without a manifest are not verified."""
    if not _is_on.get():
        return
    if is_marked(checkpoint):
        text = "%s has no %s, although it was saved with one: the save was interrupted right before it was written, it"
        log.warning(f"{text} is still being written, or it was removed. The files are not verified", checkpoint, MANIFEST)
    else:
        log.info("%s has no %s, so its files are not verified", checkpoint, MANIFEST)


def is_marked(checkpoint: Path) -> bool:
    """True if the program that saved a checkpoint was going to write a manifest."""
    try:
        content = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_bytes())
        return content["custom_metadata"].items() >= MARK.items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def read_verified(checkpoint: Path, name: str, key: str) -> bytes:
    """Return the content of a small file of a checkpoint.

    Raises:
        DamageFound: it differs from the manifest.
        OSError: it cannot be read.
    """
    content, manifest = (checkpoint / name).read_bytes(), manifest_of(checkpoint, key)
    if manifest is not None and (found := _difference(name, manifest.get(name), entry_of(content))):
        raise damaged(checkpoint, [found], key)
    return content


def is_intact(checkpoint: Path, *items: str) -> bool:
    """True if the files of some items agree with the manifest, or if there is none.

    Raises:
        OSError: the machine cannot read a file that is there.
    """
    try:
        manifest = manifest_of(checkpoint, "")
        return manifest is None or not any(find_damage(checkpoint, select(manifest, items)))
    except DamageFound:
        return False


def select(manifest: Mapping[str, Entry], items: Iterable[str]) -> dict[str, Entry]:
    """Return the entries of the files that reading some items takes: theirs, and those that describe the checkpoint."""
    wanted = {*items, ""}
    return {name: entry for name, entry in manifest.items() if name.rpartition("/")[0].partition("/")[0] in wanted}


def find_damage(checkpoint: Path, entries: Mapping[str, Entry]) -> Iterator[str]:
    """Compare files with their entries, several at a time. Yields what is wrong, with the path of the file.

    Raises:
        OSError: the machine cannot read a file that is there.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        yield from filter(None, pool.map(finder(checkpoint), entries.items()))


def finder(checkpoint: Path) -> Callable[[tuple[str, Entry]], str | None]:
    """Return a function of a path and its entry that returns what is wrong with the file, or None."""

    def find(item: tuple[str, Entry]) -> str | None:
        name, expected = item
        try:
            return _difference(name, expected, read_entry(checkpoint, name))
        except BadManifest as error:
            return f"{name} {error}"
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"

    return find


def _difference(name: str, expected: Entry | None, found: Entry) -> str | None:
    if expected is None:
        return f"{name} is not listed in {MANIFEST}"
    if expected.size != found.size:
        return f"{name} is damaged: it has {found.size:,} bytes, expected {expected.size:,}"
    if expected != found:
        return f"{name} is damaged: its digest is {found.digest}, expected {expected.digest}"
    return None


def damaged(checkpoint: Path, found: list[str], key: str) -> DamageFound:
    """Return an error about a checkpoint that a key names, with the first damaged files."""
    more = f" (and {len(found) - 1} more files)" if len(found) > 1 else ""
    way_out = f"Choose another step; {_UNVERIFIED.get(key, 'checkpoint.verify=false')} reads it as it is."
    return DamageFound([Problem.about(f"{key}={checkpoint}", f"{found[0]}{more}", way_out)])


class Verdict:
    """All that is known of the files of a checkpoint, for a report."""

    def __init__(self, checkpoint: Path) -> None:
        self.damage: list[str] = []
        """What is wrong, with the path of the file below the checkpoint."""
        self.notes: list[str] = []
        """What is unusual."""
        try:
            manifest = read_manifest(checkpoint)
        except BadManifest as error:
            self.damage.append(f"{MANIFEST} {error}")
            return
        if manifest is not None:
            self.damage += find_damage(checkpoint, manifest)
            self._add_unlisted(checkpoint, manifest)
        elif is_marked(checkpoint):
            self.damage.append(f"{MANIFEST} is missing: the save was interrupted, or the file was removed")
        else:
            self.notes.append(f"there is no {MANIFEST}, so the files cannot be verified")

    def _add_unlisted(self, checkpoint: Path, manifest: Mapping[str, Entry]) -> None:
        """Orbax may read a file inside of an item, and reads no other."""
        items = {name.partition("/")[0] for name in manifest if "/" in name}
        for name in list_files(checkpoint):
            if name not in manifest:
                is_hidden = name.rpartition("/")[2].startswith(".")
                is_read = name.partition("/")[0] in items and not is_hidden
                (self.damage if is_read else self.notes).append(f"{name} is not listed in {MANIFEST}")
