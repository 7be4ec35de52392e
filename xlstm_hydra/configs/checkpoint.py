"""What is saved and what is restored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, NUMERICS, affects
from ._rules import at_least, one_of, unused

AUTO = "auto"
"""The value of `restore` that means the run's own folder."""


@config_dataclass
class CheckpointConfig(ConfigDict, schema="checkpoint"):
    """Checkpoints hold parameters, optimizer state, step, random state, data position, and the config as metadata."""

    save_every_n_steps: int = field(default=100, metadata=affects(BOOKKEEPING))
    """Steps between checkpoints. 0: only at the end."""

    save_last: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Save after the last step too."""

    max_to_keep: int = field(default=2, metadata=affects(BOOKKEEPING))
    """Checkpoints that are kept; older or worse ones are deleted."""

    keep: str = field(default="latest", metadata=affects(BOOKKEEPING))
    """Which ones are kept: latest, or best (lowest validation loss)."""

    async_save: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Write in the background while training goes on."""

    verify: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Compare the files that are read of a checkpoint with the digests in its manifest. If one is damaged, a run that
    continues at the newest checkpoint goes back to the last intact one; a checkpoint that is named with its step is
    refused. false: read files as they are. Those of a checkpoint without a manifest, as of xlstm-jax, always are."""

    restore: str | None = field(default=None, metadata=affects(BOOKKEEPING))
    """Run folder to continue from, at its latest step, or at step N with `@N` behind it. The layout may differ.
    auto: at the newest checkpoint in the run's own folder, or anew where it has none. null: start anew."""

    lenient: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Ignore fields in the record of the checkpoint to continue from that this version does not know, such as those of
    a later version, and log which they are. false: such a record is an error. `--lenient` sets it."""

    init_from: str | None = field(default=None, metadata=affects(NUMERICS, compiled=False))
    """What a new run takes its first parameters from, and nothing else: a run folder of ours or of xlstm-jax, at its
    latest step, or at step N with `@N` behind it, or a folder with an xLSTM model of Hugging Face. The layout may
    differ. null: random values."""

    def rules(self) -> Iterator[Problem]:
        """Ranges and names."""
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
            text = "a run that continues has its parameters already"
            yield Problem(given, text, "Set {init_from}=null to continue, or {restore}=null to start anew.")
