"""The manifest of a checkpoint: size and digest of each of its files. Needs neither Orbax nor JAX.

`manifest.json` is `{"version", "algorithm", "files": {path: {"size", "digest"}}, "digest"}`, where the last digest is
that of the rest. It is written last. A manifest is read like any other file of a stranger: see `read_manifest`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import xxhash

MANIFEST = "manifest.json"
"""Name of the file in the folder of a checkpoint."""

VERSION = 1
ALGORITHM = "xxh3_128"
"""Digests detect accidental damage. They are no protection from somebody who writes a manifest of their own."""

THREADS = min(8, os.cpu_count() or 1)
"""Files that are read at the same time. The digest itself costs little: one thread computes more than 10 GiB/s."""

_TEMPORARY = f".{MANIFEST}.new"
_LEFT_OUT = (MANIFEST, _TEMPORARY)
_NFS = ".nfs"
"""How names begin that NFS gives to files that are deleted while they are open."""
_BLOCK = 2**20
_MAX_BYTES = 64 * 2**20
_DIGEST_LENGTH = 32


class BadManifest(ValueError):
    """A manifest is damaged, or has anything else in it than it should."""


class Entry(NamedTuple):
    """A file as the manifest lists it."""

    size: int
    """In bytes."""

    digest: str
    """Hexadecimal, of 128 bits."""


def entry_of(content: bytes) -> Entry:
    """Return the entry of a file with that content."""
    return Entry(len(content), xxhash.xxh3_128_hexdigest(content))


def write_manifest(checkpoint: Path) -> None:
    """List all files of a checkpoint, on this machine, in its manifest, which is there as a whole or not at all.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    names = [name for name in list_files(checkpoint) if not name.rpartition("/")[2].startswith(_NFS)]
    with ThreadPoolExecutor(THREADS) as pool:
        entries = dict(zip(names, pool.map(lambda name: read_entry(checkpoint, name), names), strict=True))
    temporary = checkpoint / _TEMPORARY
    with temporary.open("wb") as file:
        file.write(_encode(entries))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(checkpoint / MANIFEST)
    _sync_folder(checkpoint)


def read_manifest(checkpoint: Path) -> dict[str, Entry] | None:
    """Return the entries of a manifest by the path of the file below the checkpoint, or None if there is no manifest.

    Raises:
        BadManifest: it is damaged, too large, or names something else than files below the checkpoint.
        OSError: it cannot be read.
    """
    try:
        with _open(checkpoint, MANIFEST) as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(text) > _MAX_BYTES:
        raise BadManifest(f"is larger than {_MAX_BYTES:,} bytes")
    try:
        content = json.loads(text)
        entries = {name: _entry(name, fields) for name, fields in content["files"].items()}
        is_intact = text == _encode(entries, content["version"], content["algorithm"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, BadManifest) else BadManifest("is damaged: it is not a manifest") from None
    if not is_intact:
        raise BadManifest("is damaged: its content does not have the digest that it gives")
    if (content["version"], content["algorithm"]) != (VERSION, ALGORITHM):
        found = f"version {content['version']!r} with {content['algorithm']!r}"
        raise BadManifest(f"is not supported: expected version {VERSION} with {ALGORITHM!r}, got {found}")
    return entries


def list_files(folder: Path, prefix: str = "") -> Iterator[str]:
    """Paths of all files below a checkpoint but the manifest, in order. Links are listed, not followed."""
    for item in sorted(folder.iterdir()):
        if item.is_dir() and not (isinstance(item, Path) and item.is_symlink()):
            yield from list_files(item, f"{prefix}{item.name}/")
        elif prefix or item.name not in _LEFT_OUT:
            yield f"{prefix}{item.name}"


def read_entry(checkpoint: Path, name: str) -> Entry:
    """Read a file of a checkpoint, a little at a time, and return what its entry should be.

    Raises:
        BadManifest: it is not a file, or lies outside of the checkpoint.
        OSError: it cannot be read.
    """
    size, digest = 0, xxhash.xxh3_128()
    with _open(checkpoint, name) as file:
        for block in _blocks(file):
            size += len(block)
            digest.update(block)
    return Entry(size, digest.hexdigest())


def _blocks(file: IO[bytes]) -> Iterator[bytes | memoryview]:
    """The content of a file. Into the same memory again and again, which is faster, where the file can do so."""
    if not hasattr(file, "readinto"):
        yield from iter(lambda: file.read(_BLOCK), b"")
        return
    buffer: Any = memoryview(bytearray(_BLOCK))
    reader: Any = file
    while length := reader.readinto(buffer):
        yield buffer[:length]


def _open(checkpoint: Path, name: str) -> IO[bytes]:
    """Open a file that a stranger may have named: only a file, and only below the checkpoint."""
    path = checkpoint / name
    if not isinstance(path, Path):
        return path.open("rb")
    if not path.resolve().is_relative_to(checkpoint.resolve()):
        raise BadManifest("is a link that leads out of the checkpoint")
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its other end
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise BadManifest("is not a file")
    return open(number, "rb", buffering=0)


def _entry(name: Any, fields: Any) -> Entry:
    parts = name.split("/")
    if not all(part.isprintable() and part not in ("", ".", "..") for part in parts) or "\\" in name:
        raise BadManifest(f"is damaged: {name!r} is not the path of a file below the checkpoint")
    entry = Entry(**fields)
    if type(entry.size) is not int or entry.size < 0:
        raise BadManifest(f"is damaged: the size of {name!r} is {entry.size!r}")
    if type(entry.digest) is not str or len(entry.digest) != _DIGEST_LENGTH or not {*entry.digest} <= _HEXADECIMAL:
        raise BadManifest(f"is damaged: the digest of {name!r} is {entry.digest!r}")
    return entry


_HEXADECIMAL = {*"0123456789abcdef"}


def _encode(entries: Mapping[str, Entry], version: Any = VERSION, algorithm: Any = ALGORITHM) -> bytes:
    files = {name: entry._asdict() for name, entry in entries.items()}
    content = {"version": version, "algorithm": algorithm, "files": files}
    digest = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    return (json.dumps(content | {"digest": digest}, indent=1) + "\n").encode()


def _sync_folder(folder: Path) -> None:
    """Make the new name of a file last, where the file system can do so."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)
