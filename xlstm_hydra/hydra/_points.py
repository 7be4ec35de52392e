"""Compose and check all jobs of a sweep before any of them runs.

Hydra composes each job from scratch, which takes 0.1 s. Most jobs of a sweep select the same config group options and
differ only in values. Each combination of options is therefore composed once, and values are set in copies of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from xlstm_hydra.configs import RunConfig, TrainerConfig
from xlstm_hydra.problems import Problem, Unread

from ._composer import Composer, Point
from ._lenient import compose_files
from ._omegaconf import copy_config
from ._own_files import Composed
from ._search_path import has_own_files

_FOLDERS = ("hydra.sweep.subdir", "hydra.sweep.dir")
"""Keys of the `hydra` node that may differ between jobs without affecting composition."""

_dirname: Callable[..., str] | None = getattr(config_loader_impl, "get_overrides_dirname", None)
"""Hydra 1.3's function that computes `hydra.job.override_dirname`. None: Hydra 1.4, which computes the name lazily."""


PLAN = "plan"
"""Name of the task whose invalid points are launched too, unless all points are invalid: see `invalid_points`."""


class SweepLoader(ConfigLoaderImpl):
    """Hydra's config loader with a faster `load_sweep_config`: 2 ms per job if only values differ.

    Can be pickled by launchers that run jobs in other processes; the cache of composed options is not pickled.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        vars(self).update(vars(loader))
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[tuple[str, ...], Callable[[str], bool]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_bases": {}, "_groups": {}}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """Return the composed config of a job.

        Args:
            master_config: config of the sweep.
            sweep_overrides: overrides of the job.
        """
        try:
            parsed = [parse(text) for text in sweep_overrides]
            if any(map(_needs_hydra, parsed)):
                return super().load_sweep_config(master_config, list(sweep_overrides))
            return self._from_base(master_config, parsed)
        except Exception:  # Hydra reports the mistake
            return super().load_sweep_config(master_config, list(sweep_overrides))

    @staticmethod
    def identity(master: DictConfig) -> tuple[str, ...]:
        """Return the name of the primary config, followed by the overrides of the `hydra` node. All jobs of a sweep
        share both."""
        typed: Any = OmegaConf.to_container(master.hydra.overrides, resolve=False)
        return (master.hydra.job.config_name, *typed["hydra"])

    def base(self, master_config: DictConfig, choices: Sequence[str]) -> DictConfig:
        """Compose a job with only the overrides in `choices`. The result is cached and must not be modified."""
        key = (*self.identity(master_config), *choices)
        if key not in self._bases:
            self._bases[key] = super().load_sweep_config(master_config, list(choices))
        return self._bases[key]

    def _from_base(self, master: DictConfig, overrides: Sequence[Override]) -> DictConfig:
        is_group = self._group_test(master)
        choices = [override for override in overrides if _may_choose(override, is_group)]
        values = [override for override in overrides if not _may_choose(override, is_group)]
        cfg = copy_config(self.base(master, [str(override.input_line) for override in choices]))
        self._apply_overrides_to_config(values, cfg)
        _note_overrides(cfg, overrides)
        OmegaConf.copy_cache(from_config=master, to_config=cfg)
        return cfg

    def _group_test(self, master: DictConfig) -> Callable[[str], bool]:
        """Return a function that checks whether a name is a config group in the sweep's search path."""
        name, *always = key = self.identity(master)
        if key not in self._groups:
            _, repo = self._parse_overrides_and_create_caching_repo(name, always)
            self._groups[key] = lru_cache(maxsize=None)(repo.group_exists)
        return self._groups[key]


@lru_cache(maxsize=10_000)
def parse(text: str) -> Override:
    """Parse an override of a job. The result is cached and must not be modified."""
    return OverridesParser.create().parse_override(text)


def _needs_hydra(override: Override) -> bool:
    """True if Hydra's own loader must compose the job: the override affects the `hydra` node, or has several values."""
    is_own = override.key_or_group.startswith("hydra") and override.get_key_element() not in _FOLDERS
    return is_own or override.is_sweep_override()


def _may_choose(override: Override, is_group: Callable[[str], bool]) -> bool:
    """True if an override may select a config group option. Overrides with a dictionary always set values."""
    return not isinstance(override.value(), dict) and (override.package is not None or is_group(override.key_or_group))


def _note_overrides(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Record a job's overrides, environment variables and current directory in its `hydra` node, as Hydra does."""
    own = [override for override in overrides if override.is_hydra_override()]
    task = [override for override in overrides if not override.is_hydra_override()]
    noted, job = cfg.hydra.overrides, cfg.hydra.job
    texts = noted.task
    while texts:
        texts.pop()
    for override in task:
        texts.append(override.input_line)
    for override in own:
        noted.hydra.append(override.input_line)
    if job.env_copy:
        with open_dict(cfg.hydra):
            for name in job.env_copy:
                job.env_set[name] = os.environ[name]
    cfg.hydra.runtime.cwd = os.getcwd()
    if _dirname is not None:
        job.override_dirname = _dirname(overrides=task, **job.config.override_dirname)


def is_run(cfg: DictConfig) -> bool:
    """True if a composed config is a run of this package, and not that of another app that uses our sweeper."""
    found = OmegaConf.get_type(cfg, "trainer") if isinstance(cfg.get("trainer"), DictConfig) else None
    return isinstance(found, type) and issubclass(found, TrainerConfig)


def check_points(loader: SweepLoader, master: DictConfig, points: Iterable[Sequence[str]]) -> list[Point]:
    """Compose and check every point of a sweep.

    Args:
        loader: config loader that composes the jobs.
        master: config of the sweep.
        points: overrides of each job.
    """
    name, *always = loader.identity(master)

    def compose_leniently(choices: Sequence[str]) -> Composed:
        return compose_files(loader, name, [*always, *choices])

    has_files = has_own_files(loader, always)
    composer = Composer(parse, lambda choices: loader.base(master, choices), compose_leniently, has_files)
    return [composer.check(list(point), _sweep_rules) for point in points]


def invalid_points(points: Sequence[Point]) -> dict[int, list[Problem]]:
    """Return the problems of each point that must not be launched, by the point's index.

    Invalid points are not launched, with one exception: a sweep over plans prints a table, where a point that breaks a
    rule has a row with the reason. An invalid plan is therefore launched, unless all points are invalid, its config
    cannot be composed or read, or its `task.device` is wrong.
    """
    found = {number: point.problems for number, point in enumerate(points) if point.problems}
    if len(found) == len(points):
        return found
    return {number: problems for number, problems in found.items() if not _is_row(points[number])}


def _is_row(point: Point) -> bool:
    is_named = any("task.device" in problem.keys for problem in point.broken)
    is_read = not any(isinstance(problem, Unread) for problem in point.broken)
    return point.task == PLAN and not point.refused and not is_named and is_read


def _sweep_rules(run: RunConfig) -> Iterator[Problem]:
    """Yield a `Problem` if the sweep itself was started in several processes. A single process must run or submit all
    jobs."""
    if process := run.distributed.process_info(os.environ):
        this = f"process {process.process_id} of {process.num_processes}"
        rule = f"a sweep must be started by a single process, but this is {this}"
        fix = "Remove -m, or start the sweep in a single process with hydra/launcher=slurm, which submits the jobs."
        yield Problem({"distributed.name": run.distributed.name}, rule, fix)


def by_job(points: Sequence[Sequence[str]], found: Mapping[int, Sequence[Problem]]) -> list[Problem]:
    """Return each distinct problem once. Its message starts with the jobs that have the problem, and the overrides that
    distinguish them from the other jobs."""
    own = differing(points)
    return [
        Problem.about("", text if len(numbers) == len(points) else f"{_jobs(own, numbers)}: {text}")
        for text, numbers in jobs_with(found).items()
    ]


def jobs_with(found: Mapping[int, Sequence[Problem]]) -> dict[str, list[int]]:
    """Return the indices of the jobs with each problem, by the problem's text."""
    jobs: dict[str, list[int]] = {}
    for number, problems in found.items():
        for problem in problems:
            jobs.setdefault(str(problem), []).append(number)
    return jobs


def differing(points: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the overrides of each point, excluding those that all points share."""
    shared = set.intersection(*map(set, points)) if points else set()
    return [[text for text in point if text not in shared] for point in points]


def common(own: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[str]:
    """Return the overrides that all points in `numbers` share.

    Args:
        own: overrides of each point, as returned by `differing`.
        numbers: indices of the points.
    """
    found = set.intersection(*(set(own[number]) for number in numbers))
    return [text for text in own[numbers[0]] if text in found]


def _jobs(own: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """Return a text that identifies jobs: `job 3 (parallel=tp)`, or `4 of 8 jobs (optimizer.lr=-1)`."""
    which = f"job {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} of {len(own)} jobs"
    overrides = " ".join(common(own, numbers))
    return f"{which} ({overrides})" if overrides else which
