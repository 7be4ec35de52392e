"""Points, which are lists of overrides, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.configs import RunConfig, TrainerConfig
from xlstm_hydra.problems import Problem, Unread

from ._compose import SweepLoader, parse
from ._composer import Composer, Point
from ._lenient import compose_files
from ._own_files import Composed, has_search_path, own_sources

PLAN = "plan"
"""The task whose jobs may break rules, if not all of them do."""


def is_run(cfg: DictConfig) -> bool:
    """Whether a composed config is one of ours, and not that of another app that uses our sweeper."""
    found = OmegaConf.get_type(cfg, "trainer") if isinstance(cfg.get("trainer"), DictConfig) else None
    return isinstance(found, type) and issubclass(found, TrainerConfig)


def check_points(loader: SweepLoader, master: DictConfig, points: Iterable[Sequence[str]]) -> list[Point]:
    """Compose and check every point of a sweep.

    Args:
        loader: what composes.
        master: the config of the sweep.
        points: the overrides of each job.
    """
    name, *always = loader.identity(master)

    def compose_leniently(choices: Sequence[str]) -> Composed:
        return compose_files(loader, name, [*always, *choices])

    has_files = bool(own_sources(loader)) or has_search_path(always)
    composer = Composer(parse, lambda choices: loader.base(master, choices), compose_leniently, has_files)
    return [composer.check(list(point), _sweep_rules) for point in points]


def invalid_points(points: Sequence[Point]) -> dict[int, list[Problem]]:
    """The numbers of the points that are not to be launched, each with what is wrong with it.

    Plans are compared in a table, where a layout that breaks a rule has its row with the reason; unless all do so, or
    a device has no such name.
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
    """Jobs of a sweep run one after the other in the process that sweeps, or are submitted by it."""
    if process := run.distributed.process_info(os.environ):
        rule = f"a sweep is started by one process, and this is process {process.process_id} of {process.num_processes}"
        fix = "Leave out -m, or sweep from one process that submits its jobs, such as hydra/launcher=slurm."
        yield Problem({"distributed.name": run.distributed.name}, rule, fix)


def by_job(points: Sequence[Sequence[str]], found: Mapping[int, Sequence[Problem]]) -> list[Problem]:
    """Every problem once, with the jobs that have it and the overrides that make them differ from the others."""
    shared = set.intersection(*map(set, points)) if points else set()
    return [
        Problem.about("", text if len(numbers) == len(points) else f"{label(points, numbers, shared)}: {text}")
        for text, numbers in jobs_with(found).items()
    ]


def jobs_with(found: Mapping[int, Sequence[Problem]]) -> dict[str, list[int]]:
    """The numbers of the jobs that have each problem."""
    jobs: dict[str, list[int]] = {}
    for number, problems in found.items():
        for problem in problems:
            jobs.setdefault(str(problem), []).append(number)
    return jobs


def label(points: Sequence[Sequence[str]], numbers: Sequence[int], shared: set[str]) -> str:
    """`job 3 (parallel=tp)`, or `4 of 8 jobs (optimizer.lr=-1)`."""
    common = set.intersection(*(set(points[number]) for number in numbers)) - shared
    which = f"job {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} of {len(points)} jobs"
    overrides = " ".join(text for text in points[numbers[0]] if text in common)
    return f"{which} ({overrides})" if overrides else which
