"""What the command does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ._base import ConfigDict
from ._problems import Problem, one_of

TASKS = ("train",)
"""What can be done with a composed config."""


@dataclass(kw_only=True)
class TaskConfig(ConfigDict):
    """What is done with the run that the other groups describe."""

    name: str = "train"
    """train: train the model and save it."""

    def rules(self) -> Iterator[Problem]:
        """Known tasks."""
        yield from one_of(self, "name", TASKS)
