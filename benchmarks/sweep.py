"""CPU time to compose, check and plan the jobs of a sweep, compared with Hydra's own sweeper.

    python benchmarks/sweep.py [JOBS]

By default, the sweep has 1,000 jobs that differ in values. Hydra's basic sweeper composes each job to validate it, and
its launcher composes it again; it has no plans and no rules. Only some of its jobs are measured, and the total is
extrapolated. Our sweeper composes, checks and plans all jobs, for which it imports JAX, and then composes each one for
the launcher. No job is run. The ratio should be at least 15.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from xlstm_hydra.cli import main as cli
from xlstm_hydra.hydra import SweepLoader, check_points, invalid_points, split
from xlstm_hydra.sweep import is_planned, plan_points

MEASURED = 50
"""Number of measured jobs of Hydra's sweeper."""


def main() -> None:
    """Measure both sweepers, and print the seconds and their ratio."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    path = create_automatic_config_search_path(cli.__file__, None, None)
    loader = Hydra.create_main_hydra2("xlstm-hydra", path).config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    arguments = [f"optimizer.lr=range(1,{jobs // 10 + 1})", "trainer.seed=range(0,10)", "parallel=fsdp"]
    arguments += ["parallel.fsdp_axis_size=8", "trainer.simulated_devices=8"]
    master = loader.load_configuration("config", arguments, RunMode.MULTIRUN)
    measured = min(MEASURED, jobs)
    theirs = cpu_seconds(lambda: hydras(loader, master, arguments, measured)) * jobs / measured
    mine = cpu_seconds(lambda: ours(SweepLoader(loader), master, arguments))
    print(f"hydra/sweeper=basic: {theirs:.1f} s of CPU for {jobs} jobs ({measured} measured), composed twice each")
    print(f"hydra/sweeper=xlstm: {mine:.1f} s of CPU for {jobs} jobs, composed twice each, checked and planned")
    print(f"{theirs / mine:.1f} times faster")


def hydras(loader: Any, master: Any, arguments: list[str], number: int) -> None:
    """Run Hydra's sweeper on the first jobs."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra reloads the module when it starts

    sweeper = BasicSweeper(max_batch_size=None)
    sweeper.hydra_context, sweeper.config = SimpleNamespace(config_loader=loader), master  # pyright: ignore
    [batch] = sweeper.split_arguments(OverridesParser.create(config_loader=loader).parse_overrides(arguments), None)
    sweeper.validate_batch_is_legal(batch[:number])
    for point in batch[:number]:
        loader.load_sweep_config(master, point)


def ours(loader: SweepLoader, master: Any, arguments: list[str]) -> None:
    """Run our sweeper on all jobs until they would start, and compose each one as the launcher does."""
    points = check_points(
        loader, master, split(OverridesParser.create(config_loader=loader).parse_overrides(arguments))
    )
    runs = {number: point.run for number, point in enumerate(points) if is_planned(point.run)}
    assert not invalid_points(points) and not plan_points(runs, master.hydra.launcher)
    for point in points:
        loader.load_sweep_config(master, point.overrides)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()
