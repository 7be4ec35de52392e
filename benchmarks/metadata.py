"""Milliseconds from a metadata text to typed configs, after import, for our own format and those of xlstm-jax.

    python benchmarks/metadata.py [FILE ...]

Without files, the benchmark reads the frozen samples of our format and invented files of each published format, from
the tests. It reports the median of 100 readings of each, and exits with status 1 if one is not below 2 ms.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from pathlib import Path

from xlstm_hydra.metadata import read_record

GOAL = 2.0
TESTS = Path(__file__).parents[1] / "tests"


def samples(files: list[str]) -> dict[str, bytes]:
    """Texts by name."""
    if files:
        return {name: Path(name).read_bytes() for name in files}
    sys.path.insert(0, str(TESTS))
    published = importlib.import_module("published")
    found = {file.stem: file.read_bytes() for file in sorted((TESTS / "saved_metadata").glob("*.json"))}
    kinds, eras = ("mlstm", "mlstm_v1", "llama"), published.ERAS
    return found | {
        f"{kind}, {era}": write(published.tree(kind)).encode() for kind in kinds for era, write in eras.items()
    }


def milliseconds(text: bytes, repeats: int = 100) -> float:
    """Return the median time of one reading, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        read_record(text)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    """Print one line per text."""
    results = {name: milliseconds(text) for name, text in samples(sys.argv[1:]).items()}
    for name, value in results.items():
        print(f"{value:6.2f} ms  {name}")
    sys.exit(max(results.values()) >= GOAL)


if __name__ == "__main__":
    main()
