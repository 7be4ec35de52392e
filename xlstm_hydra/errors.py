"""Errors that are not bugs: an invalid config, or a condition of the machine or of the run.

Commands print each of these as a single message. Any other error is printed with its traceback and the address for bug
reports. Code raises one of the following errors, with a message that is clear without a traceback:

- `ConfigError` if the user can correct it before the run starts (exit status 2);
- an `OSError` that names the file, as raised by `open`, or an `OSError` with a message of its own (exit status 1);
- `FloatingPointError` with a message, for numbers that are not finite (exit status 1);
- `TaskError` for anything else that prevents a task from finishing (exit status 1).

`MemoryError`, exhausted device memory and devices that JAX cannot use are recognized too (exit status 1).
HYDRA_FULL_ERROR=1 prints the traceback in every case.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

from xlstm_hydra._printable import printable, printable_lines
from xlstm_hydra.problems import ConfigError

REPORT = "This is a bug in xlstm-hydra. Please report it with this traceback."
"""Printed after the traceback of a bug."""


class TaskError(Exception):
    """A task cannot be finished. The message gives the reason and the fix (exit status 1)."""


_FOLDER_NOTE = "The run's folder is "

_OURS = (errno.EBADF, errno.EFAULT, errno.ENOTSOCK)
"""`errno` values that are caused by a bug, never by the machine."""

_WAYS_OUT = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or ask for a larger quota",
    errno.EFBIG: "Allow larger files (ulimit -f)",
    errno.EROFS: "Make the folder writable",
    errno.EACCES: "Give this user access to it",
    errno.EPERM: "Give this user access to it",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
}
"""The fix for an `OSError`, by `errno`."""

_OF_FOLDERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""`errno` values of errors that can be avoided by choosing another folder."""

_DEVICE_MEMORY = (
    "Use a smaller trainer.batch_size or model.context_length, activation checkpointing (parallel.remat), or more "
    "shards (parallel=fsdp). xlstm-hydra task=plan with the same arguments prints the memory required."
)


def message_of(error: BaseException) -> str | None:
    """Return the message of an error that is not a bug, or None for a bug."""
    if isinstance(error, ConfigError | FloatingPointError | TaskError):
        return str(error) if error.args else None
    if isinstance(error, OSError):
        return _of_system(error)
    if any(cls.__name__ == "BrokenExecutor" for cls in type(error).__mro__):  # a worker process was killed
        return str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError):
        detail = f": {error}" if str(error) else ""
        return f"the memory of this machine is exhausted{detail}. Use a smaller model or batch, or another machine."
    first = str(error).partition("\n")[0].rstrip(".")
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and first.startswith("RESOURCE_EXHAUSTED"):
        return f"the memory of the devices is exhausted: {first.partition(': ')[2]}. {_DEVICE_MEMORY}"
    if isinstance(error, RuntimeError) and first.startswith("Unable to initialize backend"):
        return f"JAX cannot use the devices: {first}. Set JAX_PLATFORMS to use others, for example JAX_PLATFORMS=cpu."
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the class name if there is no message."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def status_of(error: BaseException) -> int:
    """Return the exit status of an error: 2 for an invalid config, 1 otherwise."""
    return 2 if isinstance(error, ConfigError) else 1


def wants_traceback() -> bool:
    """True if the user asked for the traceback of every error."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def note_folder(error: BaseException, folder: str) -> None:
    """Add a note with the run folder to an error that was raised after the run had started. `has_started` checks for
    this note."""
    error.add_note(f"{_FOLDER_NOTE}{folder}")


def has_started(error: BaseException) -> bool:
    """True if an error was raised after a run had started."""
    return bool(_folder_notes(error))


def text_of(error: BaseException, head: str) -> str:
    """Return the text to print for an error: `head` and the message, or, for a bug, the traceback and the address for
    bug reports."""
    message, trace = message_of(error), "".join(traceback.format_exception(error))
    if message is None:
        return printable_lines(f"{trace}{bug_report(error)}")
    text = "\n".join([f"{head}: {message}", *_folder_notes(error)])
    return printable_lines(f"{trace}{text}" if wants_traceback() or _is_found_by_jax(error) else text)


def _is_found_by_jax(error: BaseException) -> bool:
    """True if JAX itself detected a number that is not finite (trainer.debug_nans). The user then needs the traceback.
    JAX removes its internal frames from the traceback and adds a note that says so."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames[-1:]]
    is_filtered = any("JAX has removed its internal frames" in note for note in getattr(error, "__notes__", ()))
    return isinstance(error, FloatingPointError) and (is_filtered or "jax" in names)


def bug_report(error: BaseException) -> str:
    """Return the address for bug reports and the package versions that a report must contain. If the user's own code
    raised the error, return the name of the file instead."""
    if file := _own_file(error):
        return f"The error was raised by {file}, which is not part of xlstm-hydra."
    where = "".join(f"\n{url}" for url in _issue_pages())
    import platform  # needed only here

    packages = versions("xlstm-hydra", "hydra-core", "omegaconf", "jax", "flax", "orbax-checkpoint")
    return f"{REPORT}\n{packages}, {platform.platform()}{where}"


def versions(*names: str) -> str:
    """Return a text with the versions of some packages and of Python."""
    return ", ".join([*(f"{name} {_version(name)}" for name in names), f"Python {sys.version.partition(' ')[0]}"])


def _folder_notes(error: BaseException) -> list[str]:
    return [note for note in getattr(error, "__notes__", ()) if note.startswith(_FOLDER_NOTE)]


def reason(error: BaseException) -> str:
    """Return a single line that describes an error."""
    message = message_of(error)
    text = traceback.format_exception_only(error)[0] if message is None else message
    text = " ".join(text.split()) if isinstance(error, ConfigError) else text.strip().partition("\n")[0]
    return printable(text)


def _of_system(error: OSError) -> str | None:
    if error.errno in _OURS:
        return None
    if error.errno is None or type(error).__str__ is not OSError.__str__:
        return str(error) or None
    names = " -> ".join(repr(os.fspath(name)) for name in (error.filename, error.filename2) if _is_name(name))
    head = f"{names}: {error.strerror}" if names else f"{error.strerror}"
    elsewhere = ", or choose another folder with hydra.run.dir=DIR" if error.errno in _OF_FOLDERS else ""
    return head if (way := way_out(error)) is None else f"{head}. {way}{elsewhere}."


def way_out(error: OSError) -> str | None:
    """Return the fix for a system error, without a full stop, or None if there is no known fix."""
    return None if error.errno is None else _WAYS_OUT.get(error.errno)


def _is_name(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _own_file(error: BaseException) -> str | None:
    """Return the innermost file of the traceback that is not part of an installed package or the standard library. None
    if this file belongs to xlstm-hydra."""
    trace = error.__traceback__
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    package, standard = Path(__file__).parent, Path(os.__file__).parent
    for file in reversed(files):
        path = Path(file)
        if path.is_relative_to(package):
            return None
        named = {"site-packages", "dist-packages", "hydra_plugins"} & {*path.parts}
        if path.is_file() and not named and not (path.is_relative_to(standard) or path.is_relative_to(sys.prefix)):
            return file
    return None


def _version(name: str) -> str:
    from importlib import metadata  # takes 10 ms, needed only here

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _issue_pages() -> list[str]:
    """Return the addresses of issue trackers in the metadata of this package."""
    from importlib import metadata

    try:
        urls = metadata.metadata("xlstm-hydra").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return []
    pages = [url.partition(",") for url in urls]
    return [
        address.strip() for name, _, address in pages if name.strip().lower() in ("issues", "bug tracker", "tracker")
    ]
