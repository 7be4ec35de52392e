"""Every point of a sweep is checked before the first job starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig

from xlstm_hydra.configs import ConfigError, Problem

from ._errors import REFUSED
from ._load import read


def check_points(config_loader: Any, master: DictConfig, points: Iterable[Sequence[str]]) -> None:
    """Compose and check every point of a sweep.

    Args:
        config_loader: Hydra's.
        master: the config that the sweep started from.
        points: the overrides of each job.

    Raises:
        ConfigError: with the problems of every point that has some.
    """
    problems: list[Problem] = []
    for number, overrides in enumerate(points):
        try:
            cfg = config_loader.load_sweep_config(master_config=master, sweep_overrides=list(overrides))
            found = read(cfg)[1]
        except REFUSED as error:
            found = [Problem({}, str(error).strip().partition("\n")[0])]
        label = f"job {number} ({' '.join(overrides)})"
        problems.extend(Problem({}, f"{label}: {problem}") for problem in found)
    if problems:
        raise ConfigError(problems)
