"""The checkpoint from which a run continues, and the config values that must not change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm_hydra._printable import short_path
from xlstm_hydra.configs import BOOKKEEPING, KINDS, NUMERICS, PARAMETERS, RunConfig
from xlstm_hydra.problems import ConfigError, Problem, show
from xlstm_hydra.runs import (
    ABSENT,
    Difference,
    Record,
    diff,
    record_of,
    refuse_to_continue,
    step_of,
)

KEY = "checkpoint.restore"
_BATCHES = ("trainer.batch_size", "trainer.seed", "model.context_length")
"""Fields outside `data` on which the saved position in the data depends."""
_FREE = ("data.path", "data.prefetch")
"""Fields of `data` that may change, because the data files are compared by their fingerprint."""


@dataclass(frozen=True)
class Resumed:
    """Checkpoint from which a run continues."""

    checkpoint: Path
    record: Record
    changes: tuple[Difference, ...]
    """Differences between the config recorded in the checkpoint and the config of the run."""

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return step_of(self.checkpoint)

    @property
    def imported(self) -> bool:
        """True if the checkpoint was imported and has only parameters: no optimizer state and no data position."""
        return "imported" in self.record.content

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield the log lines for the checkpoint, and for the config values that differ from it; see `log_fact`."""
        yield "resumed", f"from {short_path(self.checkpoint)}"
        if self.imported:
            yield "", "it has only parameters: optimizer and data start from scratch"
        for change in self.changes:
            if change.kind != BOOKKEEPING and change.key != "checkpoint.init_from":
                key, before, after = _shown(change)
                yield "changed", f"{key} from {before} to {after} ({KINDS[change.kind]})"

    def history(self) -> list[dict[str, Any]]:
        """Return the history of the run, with one entry for each earlier start."""
        content = self.record.content
        made = {key: content[key] for key in ("overrides", "packages", "git", "package_git") if key in content}
        return [*content.get("history", []), {"last_step": self.step, "checkpoint": str(self.checkpoint), **made}]


def read_resumed(run: RunConfig, checkpoint: Path) -> Resumed:
    """Read the record of the checkpoint that a run continues from.

    Raises:
        ConfigError: the parameters or the batches of the run differ from those of the checkpoint, or the checkpoint has
        already completed all steps of the run.
    """
    record = _record_of(run, checkpoint)
    refuse_to_continue(record.writer, str(run.checkpoint.restore), KEY)
    resumed = Resumed(checkpoint, record, tuple(diff(record, run)))
    if problems := [*_refused(resumed), *_done(run, resumed)]:
        raise ConfigError(problems)
    return resumed


def refuse_other_result(run: RunConfig, checkpoint: Path) -> None:
    """Check that a completed run, which will not be repeated, was trained with this config.

    Raises:
        ConfigError: the run was trained with other values, or its checkpoint cannot be read.
    """
    record = _record_of(run, checkpoint)
    fix = "To train with other values, choose another folder (hydra.run.dir)."
    problems = [
        Problem({key: change.after}, f"the run in this folder is complete and was trained with {before}", fix)
        for change in diff(record, run)
        if change.kind in (PARAMETERS, NUMERICS) and change.key not in _FREE
        for key, before, _ in [_shown(change)]
    ]
    if problems:
        raise ConfigError(problems)


def refuse_other_corpus(run: RunConfig, resumed: Resumed, fingerprint: str) -> None:
    """Check that the corpus of the run is the corpus that the checkpoint was trained on.

    Raises:
        ConfigError: the fingerprints differ.
    """
    if not resumed.imported and resumed.record.content.get("corpus") != fingerprint:
        text = "the corpus differs from the corpus of the checkpoint: files were added, removed or resized"
        fix = "Continue with the same files. Otherwise, examples could repeat or move from training to validation."
        raise ConfigError([Problem({"data.name": run.data.name}, text, fix)])


def _record_of(run: RunConfig, checkpoint: Path) -> Record:
    classes = (run.model.model_class, type(run.model.model_config))
    return record_of(checkpoint, KEY, lenient=run.checkpoint.lenient, classes=classes)


def _refused(resumed: Resumed) -> Iterator[Problem]:
    other_data = any(change.key == "data.name" for change in resumed.changes)  # then all fields of `data` differ
    for change in resumed.changes:
        key, before, _ = _shown(change)
        is_data = key.startswith("data.") and key not in _FREE and (key == "data.name" or not other_data)
        if change.kind == PARAMETERS:
            rule, fix = "and the parameters depend on it", "Keep the saved value, or start a new run with --from."
        elif resumed.imported:
            continue
        elif key == "optimizer.name":
            rule, fix = (
                "and the saved optimizer state depends on it",
                "Keep the saved value, or start a new run with --from.",
            )
        elif is_data or key in _BATCHES:
            rule, fix = "and the saved position in the data depends on it", "Keep the saved value."
        else:
            continue
        yield Problem({key: change.after}, f"the checkpoint was saved with {before}, {rule}", fix)


def _shown(change: Difference) -> tuple[str, str, str]:
    before, after = (repr(value) if value is ABSENT else show(value) for value in (change.before, change.after))
    return change.key, before, after


def _done(run: RunConfig, resumed: Resumed) -> Iterator[Problem]:
    if resumed.step >= run.trainer.max_steps:
        given = {KEY: run.checkpoint.restore, "trainer.max_steps": run.trainer.max_steps}
        text = f"the checkpoint has already completed {resumed.step} steps"
        yield Problem(given, text, "Increase trainer.max_steps.")
