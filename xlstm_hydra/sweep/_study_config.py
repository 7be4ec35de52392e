"""Settings of a study: `hydra.sweeper.*` with `hydra/sweeper=optuna`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra._internal.utils import _locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from xlstm_hydra.configs import ConfigDict
from xlstm_hydra.errors import first_line
from xlstm_hydra.hydra import unreadable
from xlstm_hydra.problems import ConfigError, Problem, at_least, below, show

_DIRECTIONS = ("minimize", "maximize")


@dataclass(kw_only=True)
class StudyConfig(ConfigDict):
    """The option `hydra/sweeper=optuna`. Settings that only one version of Hydra's plugin has are not checked."""

    sampler: Any = None
    """An Optuna sampler, or what makes one. null: Optuna's default."""

    direction: Any = "minimize"
    """minimize or maximize."""

    storage: Any = None
    """The URL of the study's database, or an Optuna storage. null: in memory."""

    study_name: str | None = None
    """The name of the study in its database. null: Optuna chooses one."""

    n_trials: int = 20
    """Number of trials."""

    n_jobs: int = 1
    """Number of trials that the launcher is given at a time."""

    max_failure_rate: float = 1.0
    """Share of the trials of a batch that may fail before the study ends."""

    params: dict[str, Any] | None = None
    """Overrides that come before those of the command line, which replace them."""

    custom_search_space: str | None = None
    """Path of a function that suggests further values for each trial."""

    @staticmethod
    def of(settings: Mapping[str, Any]) -> StudyConfig:
        """Read the settings that the sweeper got.

        Raises:
            ConfigError: with every wrong value.
        """
        known = {each.name for each in fields(StudyConfig)}
        plain = {key: _plain(value) for key, value in settings.items() if key in known}
        try:
            return StudyConfig(**plain)
        except ConfigError as error:
            raise ConfigError([problem.at("hydra.sweeper") for problem in error.problems]) from None

    def rules(self) -> Iterator[Problem]:
        """Ranges; one direction; objects are Optuna's; the function exists."""
        yield from at_least(self, 1, "n_trials", "n_jobs")
        yield from at_least(self, 0, "max_failure_rate")
        yield from below(self, 1, "max_failure_rate", inclusive=True)
        if self.direction not in (*_DIRECTIONS, *([one] for one in _DIRECTIONS)):
            text = "must be minimize or maximize: the result of a run is one number"
            yield Problem({"direction": self.direction}, text)
        yield from self._objects()
        yield from self._function()

    def _objects(self) -> Iterator[Problem]:
        from optuna.samplers import BaseSampler
        from optuna.storages import BaseStorage

        if not (_is_made_later(self.storage) or isinstance(self.storage, str | BaseStorage)):
            yield Problem.about("storage", f"expected the URL of a database or null, got {show(self.storage)}")
        if not (_is_made_later(self.sampler) or callable(self.sampler) or isinstance(self.sampler, BaseSampler)):
            fix = "Choose one with hydra/sweeper/sampler=NAME."
            yield Problem.about("sampler", f"expected an Optuna sampler, got {show(self.sampler)}", fix)

    def _function(self) -> Iterator[Problem]:
        if not self.custom_search_space:
            return
        given = {"custom_search_space": self.custom_search_space}
        fix = "Write the path of a function, such as package.module.function."
        try:
            found = _locate(self.custom_search_space)
        except (ImportError, ValueError) as error:
            yield Problem(given, f"cannot be imported: {first_line(error.__cause__ or error)}", fix)
            return
        if not callable(found):
            yield Problem(given, "is not a function", fix)

    def overrides(self, arguments: Sequence[str]) -> list[Override]:
        """Return the overrides of `params`, then those of the command line.

        Raises:
            ConfigError: with each that Hydra cannot read.
        """
        parser, found, problems = OverridesParser.create(), [], []
        for text in (*(f"{key}={value}" for key, value in (self.params or {}).items()), *arguments):
            try:
                found.append(parser.parse_override(text))
            except HydraException as error:
                problems.append(unreadable(text, error))
        if problems:
            raise ConfigError(problems)
        return found


def _is_made_later(value: Any) -> bool:
    """True for null, and for a config from which Hydra 1.4 makes an object when the study begins."""
    return value is None or (isinstance(value, dict) and "_target_" in value)


def _plain(value: Any) -> Any:
    """Lists and dicts of OmegaConf as those of Python."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
