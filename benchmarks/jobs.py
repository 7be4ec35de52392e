"""Seconds of small jobs that differ only in the learning rate, to show the effect of sharing compiled programs.

    python benchmarks/jobs.py [OVERRIDES]

A job of the tiny model does three steps and one validation. The first job of a sweep compiles. The second job runs in
the same process, as with Hydra's basic launcher. The other jobs have their own processes, as on a cluster, with or
without the compilation cache of the sweep. The table has the time of each job, and its ratio to the first. A new
process spends some seconds on imports before the job starts; this time is listed separately.
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
    """Run a sweep in a new process, without other caches. Returns its start time."""
    hidden = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-m", "xlstm_hydra", "-m", *SMALL, *overrides, *sys.argv[1:]]
    start = time.time()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return start


def outcome(job: Path) -> dict[str, Any]:
    """Read the record of a job."""
    return json.loads((job / "outcome.json").read_text())


def began(job: Path) -> float:
    """Return the start time of a job, in seconds since 1970."""
    return datetime.fromisoformat(outcome(job)["started"]).timestamp()


def seconds(job: Path) -> float:
    """Return the seconds that a job took."""
    return datetime.fromisoformat(outcome(job)["ended"]).timestamp() - began(job)


if __name__ == "__main__":
    main()
