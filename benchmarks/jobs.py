"""Seconds of small jobs that differ in the learning rate alone: what the jobs of a sweep share.

    python benchmarks/jobs.py [OVERRIDES]

A job of the tiny model takes three steps and one validation. The first of a sweep compiles; the second runs in the same
process, as Hydra's basic launcher starts it; the others have a process of their own, as on a cluster, and find what the
sweep has kept or do not look. Beside the time of each is its ratio to that of the first. A process of its own imports
for some seconds before the job begins, which is told apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

SMALL = ["debug=fast", "logger.tensorboard=false"]


def main() -> None:
    """Run the jobs and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep"
        started = run("optimizer.lr=1e-3,2e-3", f"hydra.sweep.dir={sweep}")
        rows = {"first of a sweep": sweep / "0", "second, same process": sweep / "1"}
        for name, cache in {"own process": f"{sweep}/compilation_cache", "own process, no cache": "null"}.items():
            rows[name] = sweep.with_name(name)
            run("optimizer.lr=3e-3", f"hydra.sweep.dir='{rows[name]}'", f"trainer.compilation_cache_dir={cache}")
            rows[name] /= "0"
        print(f"imports and composing, before the first job: {began(sweep / '0') - started:.1f} s")
        print(f"{'job':22} {'seconds':>8} {'ratio':>6} {'programs':>9} {'from cache':>11} {'seconds for them':>17}")
        first = seconds(sweep / "0")
        for name, job in rows.items():
            done = json.loads((job / "plan.json").read_text())["measured"]
            print(
                f"{name:22} {seconds(job):8.1f} {seconds(job) / first:6.2f} {done['programs']:9}"
                f" {done['programs_from_cache']:11} {done['compile_seconds']:17.1f}"
            )


def run(*overrides: str) -> float:
    """Run a sweep in a process of its own, without caches of others. Returns when it was started."""
    hidden = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-m", "xlstm_hydra", "-m", *SMALL, *overrides, *sys.argv[1:]]
    start = time.time()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return start


def outcome(job: Path) -> dict[str, Any]:
    """What a job has left of itself."""
    return json.loads((job / "outcome.json").read_text())


def began(job: Path) -> float:
    """When a job began, in seconds since 1970."""
    return datetime.fromisoformat(outcome(job)["started"]).timestamp()


def seconds(job: Path) -> float:
    """How long a job took."""
    return datetime.fromisoformat(outcome(job)["ended"]).timestamp() - began(job)


if __name__ == "__main__":
    main()
