"""Time to read a checkpoint with and without verification of its files.

    python benchmarks/verify.py [GiB] [--folder DIR]

Reads a checkpoint of float32 parameters (default: 1 GiB) from a new folder in DIR (default: the current folder),
alternating with and without `verified`. Warm: the files are in the page cache, which is the worst case for the ratio,
because no time is spent waiting for the disk. Cold: the files are dropped from the page cache before each reading
(Linux only; a virtual disk may have its own cache). The ratio is computed from the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp

from xlstm_hydra.checkpoint._integrity import verified
from xlstm_hydra.runs._manifest import write_manifest

ARRAYS = 16
ROUNDS = 5


def main() -> None:
    """Print a line for each state of the page cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?", type=float, default=1.0, help="of the checkpoint, in GiB")
    parser.add_argument("--folder", default=".", help="where the checkpoint is made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint = Path(folder).absolute()
        wanted = save(checkpoint, round(arguments.size * 2**30 / 4 / ARRAYS))
        files = [file for file in checkpoint.rglob("*") if file.is_file()]
        print(f"{sum(file.stat().st_size for file in files) / 2**30:.2f} GiB in {len(files)} files")
        for name, prepare in {"warm": lambda: None, "cold": lambda: drop(files)}.items():
            alone, both = compare(checkpoint, wanted, prepare)
            print(f"{name}: reading {alone:.2f} s, reading and verifying {both:.2f} s, ratio {both / alone:.3f}")


def save(checkpoint: Path, length: int) -> dict[str, Any]:
    """Write parameters and their manifest. Returns their shapes."""
    rng = np.random.default_rng(0)
    params = {f"kernel_{number}": rng.standard_normal(length, np.float32) for number in range(ARRAYS)}
    with ocp.StandardCheckpointer() as writer:
        writer.save(checkpoint / "params", params)
    write_manifest(checkpoint)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where) for name, array in params.items()}


def compare(checkpoint: Path, wanted: dict[str, Any], prepare: Callable[[], None]) -> tuple[float, float]:
    """Return the median times of reading without and with verification, measured alternately after a warm-up round."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for is_verified, found in enumerate(times):
            prepare()
            begin = time.perf_counter()
            with verified(checkpoint, "checkpoint", "params") if is_verified else nullcontext():
                read(checkpoint, wanted)
            if number:
                found.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def read(checkpoint: Path, wanted: dict[str, Any]) -> None:
    """Read the parameters like a run."""
    with ocp.StandardCheckpointer() as reader:
        jax.block_until_ready(reader.restore(checkpoint / "params", wanted))


def drop(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
