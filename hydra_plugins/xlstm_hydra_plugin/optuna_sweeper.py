"""Optuna's sweeper, for runs whose result is their validation loss."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class OptunaSweeper(Sweeper):
    """Hydra's sweeper for Optuna, which checks first that there is something to minimise, goes on with the study that
    the folder of the sweep has, and gives the jobs what is not swept as it was typed."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make Hydra's own."""
        from xlstm_hydra.hydra import require_engine
        from xlstm_hydra.sweep import StudyConfig

        require_engine("hydra/sweeper", "optuna")
        self.study = StudyConfig.of(self.settings)
        _check_objective(config)
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper as HydraOptunaSweeper

        self.study_config, self.loader = config, hydra_context.config_loader
        known = inspect.signature(HydraOptunaSweeper).parameters  # of one version of the plugin or another
        settings: dict[str, Any] = {name: self.settings.get(name) for name in known}
        settings |= {name: getattr(self.study, name) for name in ("n_trials", "n_jobs", "max_failure_rate")}
        self.storage = settings.get("storage")
        if isinstance(self.storage, str):
            from xlstm_hydra.sweep import storage_url

            settings["storage"] = storage_url(self.storage, config.hydra.sweep.dir)
        self.theirs = HydraOptunaSweeper(**settings)
        self.theirs.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the study."""
        from xlstm_hydra.sweep import make_sweep_folder

        self.check(arguments)
        folder = Path(self.study_config.hydra.sweep.dir)
        with make_sweep_folder(folder):
            self.open_storage()
        parsed = zip(arguments, OverridesParser.create().parse_overrides(arguments), strict=True)
        searched = self.settings.get("params") or {}  # of which what is typed may fix some
        fixed = [text for text, one in parsed if not one.is_sweep_override() and one.key_or_group not in searched]
        study: Any = self.theirs.sweeper
        study.launcher = _Numbered(study.launcher, fixed, _next_number(folder))
        with _told(folder), self.storage_errors():
            self.theirs.sweep([text for text in arguments if text not in fixed])

    def open_storage(self) -> None:
        """Open the database of the study, if it has one, before anything starts.

        Raises:
            ConfigError: it cannot be opened.
        """
        from xlstm_hydra.sweep import open_storage

        if isinstance(self.storage, str):
            open_storage(self.storage, self.study_config.hydra.sweep.dir)

    def storage_errors(self) -> AbstractContextManager[None]:
        """Errors of that database inside are one line each."""
        from xlstm_hydra.sweep import storage_errors

        return storage_errors(self.storage) if isinstance(self.storage, str) else nullcontext()

    def check(self, arguments: list[str]) -> None:
        """Make sure that there is something to search, and that nothing is wrong with what all trials share.

        Raises:
            ConfigError: there is not, or something is.
        """
        from xlstm_hydra.hydra import SweepLoader, check_points, first_point
        from xlstm_hydra.problems import ConfigError, Problem
        from xlstm_hydra.sweep import check_job_folder, refuse_run_folder

        overrides = self.study.overrides(arguments)
        fixed = {one.key_or_group for one in overrides if not one.is_sweep_override()}
        searched = {one.key_or_group for one in overrides if one.is_sweep_override()} - fixed
        if not searched and not self.study.custom_search_space:
            fix = "For example 'optimizer.lr=tag(log,interval(1e-4,1e-2))'."
            raise ConfigError([Problem.about("hydra/sweeper=optuna", "there is nothing to search", fix)])
        loader = SweepLoader(self.loader)
        [point] = check_points(loader, self.study_config, [first_point(overrides)])
        broken = [problem for problem in point.broken if not searched & {*problem.keys}]
        if problems := [*point.refused, *broken]:
            raise ConfigError(problems)
        refuse_run_folder(Path(self.study_config.hydra.sweep.dir))
        check_job_folder(self.study_config, loader, point.overrides, 0)


_NOTHING_FOUND = ("No trials are completed", "Record does not exist")
"""What versions of Optuna say of a study without a completed trial."""


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Tell at the end how the trials went. The command ends with an error where none is completed."""
    from xlstm_hydra.problems import ConfigError, Problem
    from xlstm_hydra.sweep import RECORD_FILE, StorageError, finish_sweep, read_record

    error: BaseException | None = None
    try:
        yield
    except BaseException as stop:
        if not (folder / RECORD_FILE).exists():
            if isinstance(stop, StorageError):  # no trial was started
                raise ConfigError([Problem.about("hydra.sweeper.storage", str(stop))]) from None
            raise
        error = None if any(text in str(stop) for text in _NOTHING_FOUND) else stop
    status = finish_sweep(folder, error)
    if error is not None:
        print("the same command goes on with the study, by new trials", file=sys.stderr)
    if error is not None or not any(outcome.status == "completed" for outcome in read_record(folder)):
        sys.exit(status)


class _Numbered(Launcher):
    """A launcher whose jobs begin at a number, and share overrides."""

    def __init__(self, launcher: Launcher, shared: Sequence[str], first: int) -> None:
        self.launcher, self.shared, self.first = launcher, list(shared), first

    def setup(self, **settings: Any) -> None:
        """It is set up already."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """See the class."""
        points = [[*self.shared, *overrides] for overrides in job_overrides]
        return self.launcher.launch(points, initial_job_idx=self.first + initial_job_idx)


def _next_number(folder: Path) -> int:
    """That of the first job which has no folder yet."""
    names = [path.name for path in folder.iterdir() if re.fullmatch(r"\d+", path.name)]
    return max(map(int, names), default=-1) + 1


def _check_objective(config: DictConfig) -> None:
    """Make sure that a run has a result to minimise.

    Raises:
        ConfigError: it has none.
    """
    from xlstm_hydra.problems import ConfigError, Problem

    task, batches = (OmegaConf.select(config, key) for key in ("task.name", "trainer.eval_batches"))
    if task == "generate":
        fix = "Choose task=train, evaluate or plan."
        raise ConfigError([Problem({"task": task}, "has no result that a study could minimise", fix)])
    if task == "train" and batches == 0:
        text, fix = "no validation loss is measured, which a study minimises", "Set it to 1 or more."
        raise ConfigError([Problem({"trainer.eval_batches": batches}, text, fix)])
