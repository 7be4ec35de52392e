"""Address, index and GPUs of a process in a SLURM job step, read from the environment variables that `srun` sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

FIRST_PORT, PORTS = 61440, 4096
"""First port and number of ports for process 0: a range above the ephemeral ports of most systems."""

_OWN = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_NTASKS_PER_GPU")
"""Environment variables. If one of them is set, every task sees only its own GPUs, unless a value in `_BIND` overrides
this."""

_BIND = ("SLURM_GPU_BIND", "SLURM_TRES_BIND")
"""Environment variables with the binding of tasks to GPUs, such as `gres/gpu:single:1`. If a value ends with `none`,
every task sees all GPUs; otherwise, every task sees only its own GPUs."""


class ProcessInfo(NamedTuple):
    """Address, index and GPUs of one process in a run with several processes."""

    coordinator_address: str
    """`host:port` of process 0."""

    num_processes: int
    """Number of processes in the run."""

    process_id: int
    """Index of this process, from 0."""

    local_device_ids: tuple[int, ...] | None
    """Indices of the GPUs that this process uses, among the GPUs visible to it. None: all visible GPUs."""


def slurm_process(environ: Mapping[str, str]) -> ProcessInfo | None:
    """Return the information about this process in its SLURM job step. None: the process is not in a job step, or the
    step has a single task.

    The job itself is not considered: a batch script that runs the command without `srun` starts a single process.

    Raises:
        ValueError: an environment variable is missing or invalid."""
    if "SLURM_STEP_ID" not in environ or _number(environ, "SLURM_STEP_NUM_TASKS") == 1:
        return None
    count, rank = _number(environ, "SLURM_STEP_NUM_TASKS"), _number(environ, "SLURM_PROCID")
    if rank >= count:
        raise ValueError(f"SLURM_PROCID={rank} must be less than SLURM_STEP_NUM_TASKS={count}")
    # Steps of one job may run at the same time and need different ports.
    port = FIRST_PORT + (_number(environ, "SLURM_JOB_ID") + 61 * _number(environ, "SLURM_STEP_ID")) % PORTS
    host = first_host(_text(environ, "SLURM_STEP_NODELIST"))
    return ProcessInfo(f"{host}:{port}", count, rank, _gpus(environ))


def idle_tasks(environ: Mapping[str, str]) -> int:
    """Return the number of tasks of the SLURM job that are not used because the batch script runs the command without
    `srun`, otherwise 0."""
    tasks = environ.get("SLURM_NTASKS", "1")
    return int(tasks) - 1 if tasks.isdigit() and "SLURM_STEP_ID" not in environ else 0


def first_host(nodelist: str) -> str:
    """Return the first host in a SLURM node list: `node001` for `node[001-004,007],login`."""
    match = re.match(r"([^,\[\]]*)(?:\[([^\]\-,]+)[^\]]*\])?([^,\[\]]*)", nodelist)
    host = "".join(part or "" for part in match.groups()) if match else ""
    if not host:
        raise ValueError(f"SLURM_STEP_NODELIST={nodelist!r} contains no host")
    return host


def _gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return this task's share of the GPUs if all tasks on its host see the same GPUs, otherwise None."""
    tasks = _tasks_on_host(environ)
    if tasks == 1 or _has_own_gpus(environ):
        return None
    local = _number(environ, "SLURM_LOCALID")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return (local,)  # the number of GPUs is unknown: assume one per task
    gpus = len([name for name in visible.split(",") if name.strip()])
    if gpus % tasks:
        seen = f"{gpus} GPUs (CUDA_VISIBLE_DEVICES={visible})"
        raise ValueError(f"the {tasks} tasks of this host cannot share {seen} evenly; use srun --gpus-per-task")
    share = gpus // tasks
    return tuple(range(local * share, (local + 1) * share)) or None


def _has_own_gpus(environ: Mapping[str, str]) -> bool:
    """True if SLURM shows every task only its own GPUs."""
    bindings = [environ[name].strip().lower() for name in _BIND if environ.get(name)]
    if bindings:
        return not any(binding.endswith("none") for binding in bindings)
    return any(name in environ for name in _OWN)


def _tasks_on_host(environ: Mapping[str, str]) -> int:
    """Return the number of tasks on this host. `2(x3),1` means 2 tasks on each of three hosts and 1 on a fourth."""
    text = _text(environ, "SLURM_STEP_TASKS_PER_NODE")
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not of the form 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _number(environ, "SLURM_NODEID")
    if node >= len(counts):
        raise ValueError(f"SLURM_NODEID={node} is not among the hosts of SLURM_STEP_TASKS_PER_NODE={text!r}")
    return counts[node]


def _text(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise ValueError(f"SLURM started this process in a step, but {name} is not set")
    return environ[name]


def _number(environ: Mapping[str, str], name: str) -> int:
    text = _text(environ, name)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}={text!r} must be a number")
    return int(text)
