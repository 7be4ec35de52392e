"""Config group `checkpoint`: saving, restoring and initial parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, NUMERICS, affects
from ._rules import at_least, one_of, unused

AUTO = "auto"
"""Value of `restore` that selects the run's own folder."""


@config_dataclass
class CheckpointConfig(ConfigDict, schema="checkpoint"):
    """Saving of checkpoints, and the checkpoint that a run starts from.

    A checkpoint contains the parameters, the optimizer state, the step, the random state, the data position, and the
    config as metadata."""

    save_every_n_steps: int = field(default=100, metadata=affects(BOOKKEEPING))
    """Number of steps between checkpoints. 0: no checkpoints except after the last step, if `save_last` is set."""

    save_last: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Also save a checkpoint after the last step."""

    max_to_keep: int = field(default=2, metadata=affects(BOOKKEEPING))
    """Maximum number of checkpoints to keep. If there are more, the oldest (or the worst, if `keep` is best) are
    deleted."""

    keep: str = field(default="latest", metadata=affects(BOOKKEEPING))
    """Criterion for the checkpoints to keep: latest, or best (lowest validation loss)."""

    async_save: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Write checkpoints in the background while training continues."""

    verify: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Verify the files of a checkpoint against the digests in its manifest when reading them. If a file is damaged, a
    run that continues from the newest checkpoint uses the newest intact one instead, and a run that continues from a
    specific step stops with an error. false: files are not verified. Checkpoints without a manifest, such as those of
    xlstm-jax, are never verified."""

    restore: str | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Run folder to continue from, at its latest step; `RUN@N` continues from step N. The layout may differ from that
    of the earlier run. auto: continue from the newest checkpoint in the run's own folder, or start from scratch if
    there is none. null: start from scratch."""

    lenient: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Ignore unknown fields in the metadata of the checkpoint to continue from, such as fields of a later version of
    xlstm-hydra, and log them. false: an unknown field is an error. The flag `--lenient` sets this to true."""

    init_from: str | None = field(default=None, metadata=affects(NUMERICS, compiled=False))
    """Checkpoint with the initial parameters of a new run; nothing else is read from it. Either a run folder of
    xlstm-hydra or xlstm-jax (at its latest step, or at step N with `RUN@N`), or a folder with an xLSTM model in Hugging
    Face format. The layout may differ. null: random initial values."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges and allowed values, and that `restore` and `init_from` do not name two checkpoints."""
        yield from at_least(self, 0, "save_every_n_steps")
        yield from at_least(self, 1, "max_to_keep")
        yield from one_of(self, "keep", ("latest", "best"))
        for key in ("restore", "init_from"):
            place = getattr(self, key)
            if place is not None and not place.partition("@")[0].strip():
                yield Problem({key: place}, "must name a run folder, such as outputs/my_run or outputs/my_run@200")
        if self.restore is None:
            yield from unused(self, "lenient", "restore", None)
        if self.restore not in (None, AUTO) and self.init_from is not None:
            given = {"init_from": self.init_from, "restore": self.restore}
            text = "cannot both be set, because a run that is continued already has parameters"
            yield Problem(
                given, text, "Set {init_from}=null to continue the run, or {restore}=null to start a new one."
            )
