"""Keeps Hydra from making a folder for every process of a run: process 0 makes the one that all of them use."""

from __future__ import annotations

import os
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from xlstm_hydra.configs import ConfigError, DistributedConfig

_SILENT = ("none", "disabled")
"""Options of `hydra/job_logging` that write no file."""


class SeveralProcesses(Callback):
    """In each process but the first, before Hydra starts its job: no folder, no files, warnings with its number."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Change the config of Hydra's own that the job is about to get."""
        number = _process_id(config)
        if not number:
            return
        with read_write(config), open_dict(config):
            config.hydra.run.dir = "."
            config.hydra.output_subdir = None
            if config.hydra.runtime.choices.get("hydra/job_logging") not in _SILENT:
                config.hydra.job_logging = _warnings_only(number)


def _process_id(config: DictConfig) -> int:
    """The number of this process; 0 too where the config is wrong, which is told later."""
    node = config.get("distributed")
    try:
        values: Any = OmegaConf.to_container(node, resolve=True) if node is not None else {}
        place = DistributedConfig.from_dict(DistributedConfig, values).place(os.environ)
    except ConfigError:
        return 0
    return place.process_id if place else 0


def _warnings_only(number: int) -> dict[str, Any]:
    console = {"class": "logging.StreamHandler", "formatter": "numbered", "stream": "ext://sys.stderr"}
    return {
        "version": 1,
        "formatters": {"numbered": {"format": f"process {number}: %(message)s"}},
        "handlers": {"console": console},
        "root": {"level": "WARNING", "handlers": ["console"]},
        "loggers": {"absl": {"level": "ERROR"}},  # its warnings are the same in all processes
        "disable_existing_loggers": False,
    }
