"""Time of one tab completion: from the key to the answer, with the start of Python.

    python benchmarks/completion.py [REPEATS]

Prints the median wall time and CPU time for several command lines. The wall time must stay below 0.3 s on an idle
machine.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time

LINES = (
    "",
    "parallel=dp,fs",
    "optimizer=lion optimizer.b",
    "model=llama_7b model.attention_backend=",
    "hydra/launcher=slurm hydra.launcher.g",
    "--from out",
)


def main() -> None:
    """Measure every line, and print the medians."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for line in LINES:
        complete(line)  # write the .pyc files
        walls, cpus = zip(*(complete(line) for _ in range(repeats)), strict=True)
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        print(f"{wall:.3f} s, {cpu:.3f} s of CPU: xlstm-hydra {line}<TAB>")


def complete(line: str) -> tuple[float, float]:
    """Return the wall time and CPU time of one completion."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "xlstm_hydra", "-sc", "query=bash"]
    environ = os.environ | {"COMP_LINE": f"xlstm-hydra {line}"}
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
