"""Save and restore the state of a run with Orbax, on any layout.

`<run>/checkpoints/<step>/` contains the items params, opt_state, progress (step and random state), data (the position
in the data, as JSON) and metadata (JSON, see `xlstm_hydra.metadata`), and the file manifest.json with the digests of
all files. Unfinished saves are never listed as checkpoints. The files do not depend on the number of processes.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from xlstm_hydra._logging import log
from xlstm_hydra._status import status
from xlstm_hydra.configs import CheckpointConfig
from xlstm_hydra.data import Batches
from xlstm_hydra.problems import show
from xlstm_hydra.runs import (
    FOLDER,
    MARK,
    RESTORE,
    attributed_to,
    read_verified,
    refuse_links_out,
    refused,
)
from xlstm_hydra.step import TrainState

from ._faults import Listener, SaveError, reading, saving
from ._integrity import Sealing, verified
from ._parts import differing

_TRASH = "deleted"
"""Folder to which checkpoints are moved before their files are deleted. The move is atomic, so that a process that is
killed while deleting files does not leave a checkpoint that looks complete."""

_POLL_SECONDS = 0.01


class Logged(NamedTuple):
    """State of the metric log, saved so that a resumed run writes the same metrics."""

    losses: tuple[float, ...] = ()
    """Losses of the steps since the last line of metrics. The next line contains their mean."""

    validation_loss: float | None = None
    """Last validation loss in nats per token, if there is one."""


class Checkpoints:
    """Context manager for the checkpoints of one run folder.

    With `keep=best`, checkpoints are ranked by their validation loss. A checkpoint saved when the run is stopped by a
    signal has no validation loss; it is kept until a later checkpoint is saved.

    Args:
        run_folder: the run folder.
        config: the checkpoint options.

    Raises:
        ConfigError: the checkpoint folder is a link that leads out of the run folder.
        SaveError: the checkpoint folder cannot be written.
    """

    def __init__(self, run_folder: Path, config: CheckpointConfig) -> None:
        best = config.keep == "best"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.max_to_keep,
            best_fn=(lambda metrics: metrics["validation_loss"]) if best else None,
            best_mode="min",
            enable_async_checkpointing=config.async_save,
            cleanup_tmp_directories=True,
            todelete_subdir=_TRASH,
        )
        self._best, self._is_async = best, config.async_save
        self._folder = run_folder.resolve() / FOLDER
        refuse_links_out(run_folder, [run_folder / FOLDER], {"hydra.run.dir": str(run_folder)}, "Remove it.")
        self._listener, self._has_failed = Listener(), False
        self._in_background: int | None = None
        self._sealing: Sealing | None = None
        with saving(None, self._folder):
            self._manager = ocp.CheckpointManager(self._folder, options=options)
            steps = self._manager.all_steps() if best else ()
            self._stopgaps = [step for step in steps if self._manager.metrics(step) is None]

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close the checkpoints. If the block has raised another error, a failed save is only logged."""
        if isinstance(error, SaveError) and jax.process_count() > 1:
            return  # Orbax would wait for the other processes, which exit together with this one
        self._has_failed = error is not None
        try:
            self.close()
        except SaveError as another:
            if error is None:
                raise
            if not isinstance(error, OSError):  # an OSError has the same cause
                log.warning("%s", another)

    def save(
        self,
        state: TrainState,
        data: Batches,
        metadata: Mapping[str, Any],
        validation_loss: float | None,
        losses: Sequence[float] = (),
    ) -> None:
        """Save a step, in the background if `async_save` is set. A step that is already saved is skipped.

        Args:
            state: training state after the step.
            data: the training batches, for their position.
            metadata: the content of the item `metadata`.
            validation_loss: the last validation loss in nats per token; None if the run is stopped by a signal.
            losses: losses of the steps since the last line of metrics.

        Raises:
            SaveError: this step cannot be saved, or the previous save in the background has failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._wait()
        metrics = {"validation_loss": validation_loss} if self._best and validation_loss is not None else None
        with saving(step, self._folder), _unwarned() if self._best and metrics is None else nullcontext():
            self._delete_stopgaps()
            self._empty_trash()
            self._save(step, metrics, state, data, metadata, Logged(tuple(losses), validation_loss))
        self._in_background = step
        if jax.process_index() == 0:
            self._sealing = Sealing(self._folder / str(step), self._manager.is_saving_in_progress)
        if not self._is_async:
            self._wait()

    def _save(
        self,
        step: int,
        metrics: Mapping[str, float] | None,
        state: TrainState,
        data: Batches,
        metadata: Mapping[str, Any],
        logged: Logged,
    ) -> None:
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                opt_state=ocp.args.StandardSave(_by_path(state.opt_state)),
                progress=ocp.args.StandardSave({"step": state.step, "rng": state.rng}),
                data=ocp.args.JsonSave({"step": step, "batches": data.position, **logged._asdict()}),
                metadata=ocp.args.JsonSave(dict(metadata)),
            ),
            metrics=metrics,
            custom_metadata=MARK,
        )

    def check(self) -> None:
        """Raise the error of a failed background save, without waiting for a running save.

        Raises:
            SaveError: the save has failed.
        """
        if self._in_background is not None:
            with saving(self._in_background, self._folder):
                self._listener.raise_heard()
                if self._sealing is not None:
                    self._sealing.raise_failed()

    def close(self) -> None:
        """Wait until all checkpoints are on disk.

        Raises:
            SaveError: a checkpoint cannot be saved.
        """
        try:
            with status("saving"):
                self._wait()
            with saving(None, self._folder):
                self._delete_stopgaps()
                self._empty_trash()
                self._manager.close()
        except Exception:
            with suppress(Exception):  # the same error again
                self._manager.close()
            raise
        if not self._has_failed:
            self._listener.stop()

    def _wait(self) -> None:
        """Wait until the background save has finished."""
        while self._in_background is not None and self._manager.is_saving_in_progress():
            self.check()  # Orbax itself would wait for the processes that have not failed
            time.sleep(_POLL_SECONDS)
        with saving(self._in_background, self._folder):
            self._manager.wait_until_finished()
            if (sealing := self._sealing) is not None:
                self._sealing = None  # because closing waits again after an error
                sealing.wait()
            if self._is_unsaved():
                self._listener.raise_heard()
        if self._in_background is not None:
            self._listener.report()
        self._in_background = None

    def _is_unsaved(self) -> bool:
        """True if the background save left no checkpoint. Needed because Orbax raises the reason only once."""
        return self._in_background is not None and not (self._folder / str(self._in_background)).exists()

    def _delete_stopgaps(self) -> None:
        """Delete checkpoints without a validation loss once a later checkpoint is on disk."""
        if self._stopgaps and max(self._manager.all_steps()) > max(self._stopgaps):
            self._manager.wait_until_finished()
            for step in self._stopgaps:
                self._manager.delete(step)
            self._stopgaps = []

    def _empty_trash(self) -> None:
        trash = self._folder / _TRASH
        if jax.process_index() == 0 and not trash.is_symlink():
            for unwanted in trash.glob("*"):
                shutil.rmtree(unwanted, ignore_errors=True)


@contextmanager
def _unwarned() -> Iterator[None]:
    """Suppress Orbax's warning about a checkpoint without a metric, which is intended in the block."""
    absl, level = logging.getLogger("absl"), logging.getLogger("absl").level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)


def restore(checkpoint: Path, target: TrainState, data: Batches) -> TrainState:
    """Restore a checkpoint onto the layout of `target`, and move `data` to the saved position.

    Args:
        checkpoint: the checkpoint path.
        target: the expected state as a tree of `jax.ShapeDtypeStruct`: shapes, dtypes and shardings.
        data: the training batches.

    Returns:
        The training state.

    Raises:
        ConfigError: the checkpoint is damaged, or the names or shapes of its parameters or optimizer state do not match
        `target`.
    """
    with verified(checkpoint, RESTORE):
        return _restore(checkpoint, target, data)


def _restore(checkpoint: Path, target: TrainState, data: Batches) -> TrainState:
    wanted = {
        "params": target.params,
        "opt_state": _by_path(target.opt_state),
        "progress": {"step": target.step, "rng": target.rng},
    }
    for item in ("params", "opt_state"):
        _refuse_other_shapes(checkpoint, item, wanted[item])
    args: dict[str, Any] = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
    args["data"] = ocp.args.JsonRestore()
    with (
        attributed_to(RESTORE, checkpoint),
        reading("training state", checkpoint),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader,
    ):
        restored = reader.restore(epath.Path(checkpoint), args=ocp.args.Composite(**args))
        position = restored["data"]["batches"]
    data.seek(position)
    structure = jax.tree.structure(target.opt_state)
    leaves = [restored["opt_state"][path] for path in _by_path(target.opt_state)]
    opt_state = jax.tree.unflatten(structure, leaves)
    return TrainState(restored["params"], opt_state, restored["progress"]["step"], restored["progress"]["rng"])


def read_logged(checkpoint: Path) -> Logged:
    """Read the saved state of the metric log. The result is empty for checkpoints of earlier versions, which did not
    save this state.

    Raises:
        ConfigError: the checkpoint is damaged.
    """
    with attributed_to(RESTORE, checkpoint), reading("position in the data", checkpoint / "data"):
        content = json.loads(read_verified(checkpoint, "data/metadata", RESTORE))
    return Logged(tuple(content.get("losses", ())), content.get("validation_loss"))


def _refuse_other_shapes(checkpoint: Path, item: str, wanted: Any) -> None:
    """Check that an item (`params` or `opt_state`) of a checkpoint has the expected names and shapes.

    Raises:
        ConfigError: names or shapes differ, or the item cannot be read.
    """
    what = "parameters" if item == "params" else "optimizer state"
    with attributed_to(RESTORE, checkpoint), reading(what, checkpoint / item):
        saved: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(checkpoint / item))
    shapes = {path: tuple(leaf.shape) for path, leaf in _by_path(saved.tree).items()}
    expected = {path: tuple(leaf.shape) for path, leaf in _by_path(wanted).items()}
    wrong = differing(expected, shapes)
    if not wrong:
        return
    path = wrong[0]
    got, wants = (show(tree.get(path, "no array")) for tree in (shapes, expected))
    what = "model" if item == "params" else "optimizer"
    text = f"{len(wrong)} arrays in {item} do not match, for example {path}: expected {wants}, got {got}"
    fix = f"Choose the {what} that the checkpoint was saved with, recorded in {checkpoint / 'metadata' / 'metadata'}."
    raise refused(str(checkpoint), text, fix)


def _by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by path. Empty nodes are omitted."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def to_json(content: Mapping[str, Any]) -> str:
    """Return `content` as indented JSON text, with a newline at the end.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
