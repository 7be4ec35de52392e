"""Find the checkpoint or run that the user refers to with a path. If there is none, the error suggests what to type
instead."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from xlstm_hydra._logging import log
from xlstm_hydra.problems import ConfigError, either

from ._hub import hub_address, hub_id, model_in
from ._links import refuse_links_out
from ._paths import (
    FOLDER,
    RESTORE,
    checkpoints_at,
    has_metadata,
    is_checkpoint,
    is_finished,
    known_step,
    refused,
    run_of,
    saved_steps,
    step_in_name,
    steps_folder,
    to_path,
)

_FIX = "Give the folder of a run with saved checkpoints."
_SHOWN = 8
"""Maximum number of runs listed in a message."""
_LOOKED_AT = 1000
"""Maximum number of folders that are searched for runs."""
_KEYS = ("--from", "resume", "resume_sweep", "task.checkpoint", "checkpoint.init_from", "checkpoint.restore")
_SOURCE = re.compile(r"ckpt://([^'\",\]]+)")
_SWEEP, _METADATA = "sweep.jsonl", "metadata"
"""Name of the record file in a sweep folder, and of the metadata folder in a checkpoint."""


def find_checkpoint(source: str, key: str = RESTORE) -> Path:
    """Return the folder of the checkpoint that a source refers to.

    Args:
        source: a local path, or a bucket address such as `gs://bucket/runs/a@2000`. The path of a checkpoint, or of a
            file in it, refers to this checkpoint. The path of a run folder, or of its checkpoint folder, refers to the
            latest checkpoint of the run. The path of a run may be followed by `@STEP`, or by `@NAME` with the name of
            a copy or link in the checkpoint folder.
        key: the config key or option that `source` was given with, for messages.

    Raises:
        ConfigError: the run does not exist or cannot be read, has no checkpoint of this step or name, or contains a
            link that leads out of it.
    """
    with reached(source, key):
        return _find(source, key)


def checkpoints_of_run(source: str, key: str = RESTORE) -> dict[int, Path]:
    """Return the finished checkpoints by step if `source` is a run without a step. Otherwise return an empty dict."""
    with reached(source, key):
        path = to_path(source)
        return checkpoints_at(Path(os.path.abspath(path)) if isinstance(path, Path) else path)


@contextmanager
def reached(source: str, key: str) -> Iterator[None]:
    """Convert every error while reading a source into a `ConfigError`."""
    if on_hub := hub_address(source):
        raise refused(source, *on_hub, key)
    try:
        yield
    except (OSError, ImportError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        fix = "For gs:// and s3://, run pip install 'xlstm-hydra[remote]'." if "://" in source else ""
        text = getattr(error, "strerror", None) or error
        text = f"unsupported storage {error}" if isinstance(error, KeyError) else text
        raise refused(source, f"cannot be read: {text}", fix, key) from None


def _find(source: str, key: str) -> Path:
    path = to_path(source)
    if saved := checkpoints_at(path):
        return _inside(_latest(path, saved), path, source, key)
    if (found := _checkpoint_around(path)) is not None:
        if not is_finished(found):
            raise refused(source, f"{found.name} is incomplete: the checkpoint was not saved completely", _FIX, key)
        return _inside(found, run_of(found) or found, source, key)
    name, _, wanted = source.rpartition("@")
    if name and not path.exists():
        return _inside(_named(to_path(name), wanted.rstrip("/"), source, key), to_path(name), source, key)
    raise refused(source, *_explained(path), key)


def _checkpoint_around(path: Path) -> Path | None:
    """Return the checkpoint that is at a path or contains the path, or None."""
    if not path.exists():
        return None
    return next((folder for folder in (path, *list(path.parents)[:3]) if is_checkpoint(folder)), None)


def _latest(source: Path, saved: dict[int, Path]) -> Path:
    """Return the latest checkpoint with metadata. If no checkpoint has metadata, return the latest checkpoint, so that
    reading it raises an error about it."""
    newest = next((step for step in sorted(saved, reverse=True) if has_metadata(saved[step])), None)
    if newest is None:
        return saved[max(saved)]
    if left_out := [str(item) for item in _items(steps_folder(source)) if (step_in_name(item) or 0) > newest]:
        text = "skipped incomplete or damaged checkpoints: %s; using step %d"
        log.warning(text, ", ".join(left_out), newest)
    return saved[newest]


def _named(run: Path, wanted: str, source: str, key: str) -> Path:
    """Return the checkpoint of a run with this step, or the copy or link with this name in the checkpoint folder."""
    saved, is_step = checkpoints_at(run), wanted.isascii() and wanted.isdigit()
    if not saved and is_checkpoint(run):
        step = known_step(run)
        if is_step and int(wanted) == step:
            return run
        what = "a checkpoint itself" if step is None else f"the checkpoint of step {step}"
        raise refused(source, f"{run} is {what}", f"Remove '@{wanted}'.", key)
    if is_step and int(wanted) in saved:
        return saved[int(wanted)]
    if wanted and not is_step and "/" not in wanted and is_checkpoint(steps_folder(run) / wanted):
        return steps_folder(run) / wanted
    if not saved:
        raise refused(source, *_explained(run if is_step else to_path(source)), key)
    listed = f"Saved steps: {either(sorted(saved))}."
    if not is_step:
        raise refused(source, f"expected a step number after '@', got {wanted!r}", listed, key)
    raise refused(source, f"no checkpoint of step {wanted}", listed, key)


def _explained(path: Path) -> tuple[str, str]:
    """Return a description of a path that is not a checkpoint, and a suggestion of what to type instead."""
    if not isinstance(path, Path) or not path.is_dir():
        return _no_folder(path)
    runs = list(itertools.islice(_runs_below(path), _SHOWN + 1))
    if runs:
        shown = ", ".join(map(str, runs[:_SHOWN])) + (", ..." if len(runs) > _SHOWN else "")
        what = "sweep" if (path / "sweep.jsonl").exists() or (path / "multirun.yaml").exists() else "folder of runs"
        return f"is a {what}, not a run; it contains the runs {shown}", "Give one of these runs."
    if model := model_in(path):
        return model
    text = f"no checkpoints in {path.absolute() / FOLDER}"
    if started := sorted(
        item.name for item in _items(steps_folder(path)) if not is_finished(item) and is_checkpoint(item)
    ):
        return f"{text}, only incomplete ones: {', '.join(started[:_SHOWN])}", _FIX
    return text, _FIX


def _no_folder(path: Path) -> tuple[str, str]:
    if not isinstance(path, Path):
        return f"no checkpoints in {path / FOLDER}", _FIX
    if path.exists():
        around = path.parent.parent if path.parent.name == FOLDER else path.parent
        fix = f"Give the run folder instead: {around}." if _has_checkpoints(around) else _FIX
        return "is a file, not a run or a checkpoint", fix
    if path.is_symlink():
        return f"is a broken link: {os.readlink(path)} does not exist", _FIX
    if on_hub := hub_id(path):
        return on_hub
    near = difflib.get_close_matches(path.name, [item.name for item in _items(path.parent)], 3)
    fix = f"Did you mean {either(str(path.parent / name) for name in near)}?" if near else _FIX
    return f"no checkpoints in {path.absolute() / FOLDER}: the folder {path.absolute()} does not exist", fix


def _runs_below(folder: Path) -> Iterator[Path]:
    """Yield the runs with checkpoints in a folder, up to three levels deep: outputs/DATE/TIME/JOB."""
    level = [folder]
    for _ in range(3):
        level = [item for above in level for item in _items(above)][:_LOOKED_AT]
        runs = [item for item in level if _has_checkpoints(item)]
        yield from runs
        level = [item for item in level if item not in runs]


def _has_checkpoints(folder: Path) -> bool:
    try:
        return bool(checkpoints_at(folder))
    except OSError:
        return False


def _items(folder: Path) -> list[Path]:
    """Return the contents of a folder, with numbers in numeric order. Empty if the path is not a folder or cannot be
    read."""
    try:
        return sorted(folder.iterdir(), key=lambda item: item.name.zfill(12) if item.name.isdigit() else item.name)
    except OSError:
        return []


def _inside(checkpoint: Path, root: Path, source: str, key: str) -> Path:
    """Return the path of a checkpoint with links such as `latest` resolved, because their targets may change later.

    Args:
        checkpoint: the checkpoint folder.
        root: the folder given by the user, in which the checkpoint was found.
        source: the text typed by the user, for messages.
        key: the config key or option that `source` was given with, for messages.

    Raises:
        ConfigError: a link leads out of `root`, so that files outside `root` would be read.
    """
    if not isinstance(checkpoint, Path):
        return checkpoint
    root = root.parent if root.name == FOLDER and root != checkpoint else root
    refuse_links_out(root, [checkpoint], {key: source}, "Copy the target, or give its folder instead.")
    return checkpoint.resolve() if checkpoint.is_symlink() else Path(os.path.abspath(checkpoint))


def named_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders of all runs and sweeps named on a command line: after `--from`, `ckpt://`, `resume=`,
    `resume_sweep=`, or the key of a field that takes a checkpoint."""
    texts = [*arguments, ""]
    sources = [after for text, after in zip(texts, texts[1:], strict=False) if text == "--from"]
    sources += [text.partition("=")[2] for text in texts if text.partition("=")[0].lstrip("+") in _KEYS]
    sources += [match[1] for text in texts for match in _SOURCE.finditer(text)]
    return run_folders(sources)


def run_folders(sources: Iterable[str]) -> list[Path]:
    """Return the folders of the runs and sweeps that some sources refer to. A source is RUN, RUN@STEP, a sweep, a
    checkpoint, or a file in one of these."""
    found: list[Path] = []
    for source in sources:
        with suppress(OSError, ValueError):  # such as a path that is too long, which is reported later
            found += _roots(source.strip("'\""))
    return found


def _roots(source: str) -> Iterator[Path]:
    if not source or "://" in source:
        return
    source = os.path.expanduser(source)
    for name in {source, source.rpartition("@")[0] or source}:
        for path in {Path(os.path.abspath(name)), Path(os.path.realpath(name))}:
            if path.is_file():
                yield from (path.parent, *([path.parents[1]] if path.parent.name == _METADATA else []))
            else:
                yield path
            for above in (path, *path.parents):
                yield from _around(above)


def _around(folder: Path) -> Iterator[Path]:
    """Yield the run folder or sweep folder to which a folder belongs, judging by names and contents."""
    if (folder / _SWEEP).is_file():
        yield folder
    if folder.parent.name == FOLDER and is_checkpoint(folder):
        yield folder.parent.parent
    if folder.name == FOLDER and saved_steps(folder.parent):
        yield folder.parent
