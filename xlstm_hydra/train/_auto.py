"""`parallel=auto`: the layout of a run is chosen when its devices are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax

from xlstm_hydra._logging import log
from xlstm_hydra.checkpoint import to_json
from xlstm_hydra.configs import RunConfig
from xlstm_hydra.devices import device_here, is_first
from xlstm_hydra.plan import FEW, SEARCH_FILE, Search, search
from xlstm_hydra.runs import replace_file, write_layout


@dataclass(frozen=True)
class Choice:
    """A run with its layout, and how that was chosen."""

    run: RunConfig
    search: Search | None
    """None: the layout was given."""

    def keep(self, folder: Path) -> None:
        """Write what was chosen into the run's config, and what it was chosen from beside it."""
        if self.search is not None and is_first():
            replace_file(folder / SEARCH_FILE, to_json(self.search.to_dict()))
            write_layout(folder, self.run)


def choose_layout(run: RunConfig) -> Choice:
    """The run with a layout for the devices that there are. All processes choose the same one.

    Raises:
        ConfigError: the layout is to be chosen, and none is allowed or none fits.
    """
    if not run.parallel.is_open():
        return Choice(run, None)
    found = search(run, jax.device_count(), device_here(run.device), best=FEW)
    chosen = found.chosen
    if is_first():
        log.info("parallel=auto: %s", found.why())
    return Choice(chosen, found)
