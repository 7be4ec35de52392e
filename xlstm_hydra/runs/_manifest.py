"""The manifest of a checkpoint, with the size and digest of every file. Needs neither Orbax nor JAX.

`manifest.json` contains `{"version", "algorithm", "files": {path: {"size", "digest"}}, "digest"}`, where the last
digest covers the rest of the manifest. The manifest is written after all other files of the checkpoint. Its content is
not trusted; see `read_manifest`."""

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
"""Name of the manifest file in a checkpoint folder."""

VERSION = 1
ALGORITHM = "xxh3_128"
"""Algorithm of the digests. Digests detect accidental damage; they do not protect against an attacker, who can write a
new manifest."""

THREADS = min(8, os.cpu_count() or 1)
"""Number of files that are read in parallel. Computing a digest is cheap: more than 10 GiB/s per thread."""

_TEMPORARY = f".{MANIFEST}.new"
_LEFT_OUT = (MANIFEST, _TEMPORARY)
_NFS = ".nfs"
"""Prefix of the names to which NFS renames open files that are deleted."""
_BLOCK = 2**20
_MAX_BYTES = 64 * 2**20
_DIGEST_LENGTH = 32


class BadManifest(ValueError):
    """A manifest is damaged or has invalid content."""


class Entry(NamedTuple):
    """Manifest entry of a file."""

    size: int
    """Size in bytes."""

    digest: str
    """128-bit digest as a hexadecimal string."""


def entry_of(content: bytes) -> Entry:
    """Return the manifest entry of a file with this content."""
    return Entry(len(content), xxhash.xxh3_128_hexdigest(content))


def write_manifest(checkpoint: Path) -> None:
    """Write a manifest of all files of a local checkpoint. The manifest is written atomically.

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
    """Return the entries of a manifest by path relative to the checkpoint, or None if there is no manifest.

    Raises:
        BadManifest: the manifest is damaged or too large, or lists paths outside the checkpoint.
        OSError: the manifest cannot be read.
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
        raise BadManifest("is damaged: its content does not match its digest")
    if (content["version"], content["algorithm"]) != (VERSION, ALGORITHM):
        found = f"version {content['version']!r} with {content['algorithm']!r}"
        raise BadManifest(f"is not supported: expected version {VERSION} with {ALGORITHM!r}, got {found}")
    return entries


def list_files(folder: Path, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all files in a checkpoint except the manifest, in sorted order. Links are listed, not
    followed."""
    for item in sorted(folder.iterdir()):
        if item.is_dir() and not (isinstance(item, Path) and item.is_symlink()):
            yield from list_files(item, f"{prefix}{item.name}/")
        elif prefix or item.name not in _LEFT_OUT:
            yield f"{prefix}{item.name}"


def read_entry(checkpoint: Path, name: str) -> Entry:
    """Read a file of a checkpoint in blocks, and return its manifest entry.

    Raises:
        BadManifest: the path is not a file, or leads out of the checkpoint.
        OSError: the file cannot be read.
    """
    size, digest = 0, xxhash.xxh3_128()
    with _open(checkpoint, name) as file:
        for block in _blocks(file):
            size += len(block)
            digest.update(block)
    return Entry(size, digest.hexdigest())


def _blocks(file: IO[bytes]) -> Iterator[bytes | memoryview]:
    """Yield the content of a file in blocks. A block is valid only until the next one, because the buffer is reused if
    possible."""
    if not hasattr(file, "readinto"):
        yield from iter(lambda: file.read(_BLOCK), b"")
        return
    buffer: Any = memoryview(bytearray(_BLOCK))
    reader: Any = file
    while length := reader.readinto(buffer):
        yield buffer[:length]


def _open(checkpoint: Path, name: str) -> IO[bytes]:
    """Open a file whose name is not trusted. It must be a regular file inside the checkpoint."""
    path = checkpoint / name
    if not isinstance(path, Path):
        return path.open("rb")
    if not path.resolve().is_relative_to(checkpoint.resolve()):
        raise BadManifest("is a link that leads out of the checkpoint")
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would block
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
        raise BadManifest(
            f"is damaged: expected {_DIGEST_LENGTH} hexadecimal digits as the digest of {name!r}, got {entry.digest!r}"
        )
    return entry


_HEXADECIMAL = {*"0123456789abcdef"}


def _encode(entries: Mapping[str, Entry], version: Any = VERSION, algorithm: Any = ALGORITHM) -> bytes:
    files = {name: entry._asdict() for name, entry in entries.items()}
    content = {"version": version, "algorithm": algorithm, "files": files}
    digest = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    return (json.dumps(content | {"digest": digest}, indent=1) + "\n").encode()


def _sync_folder(folder: Path) -> None:
    """Flush a folder to disk after a file in it was renamed, if the file system supports this."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)
