"""Resources for the jobs of a sweep, on SLURM or on this machine. Fields are named as in Hydra's submitit plugin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._rules import at_least

_EARLY_S = 60
"""Maximum number of seconds by which SLURM may send a signal earlier than requested."""


@config_dataclass
class SlurmLauncherConfig(ConfigDict):
    """Resources that each job of a sweep requests from SLURM. All jobs of a sweep form one job array."""

    partition: str | None = None
    """SLURM partitions, separated by commas. null: the cluster's default."""

    account: str | None = None
    """Account charged for the jobs. null: the user's default."""

    qos: str | None = None
    """SLURM quality of service. null: the user's default."""

    constraint: str | None = None
    """Features that the nodes must have, as in `sbatch --constraint`. null: any node."""

    exclude: str | None = None
    """Nodes that must not be used, such as `node[3-5]`. null: no node is excluded."""

    timeout_min: int = 60
    """Time limit of each job, in minutes."""

    nodes: int = 1
    """Number of nodes per job."""

    tasks_per_node: int = 1
    """Number of processes that `srun` starts on each node. All processes of a job train one model together."""

    gpus_per_node: int | None = None
    """Number of GPUs on each node, shared equally by the processes on the node. null: not requested."""

    gpus_per_task: int | None = None
    """Number of GPUs per process; each process sees only its own GPUs. null: not requested."""

    gres: str | None = None
    """Generic resources (`--gres`) of each node, such as `gpu:a100:4`. null: not requested."""

    cpus_per_task: int | None = None
    """Number of CPU cores per process. null: the cluster's default."""

    mem_gb: float | None = None
    """Memory per node, in GiB. null: the cluster's default."""

    array_parallelism: int = 256
    """Maximum number of jobs of the sweep that run at the same time."""

    setup: list[str] = field(default_factory=list)
    """Lines of the batch script that run before the job, such as `module load cuda` or `export NAME=value`."""

    srun_args: list[str] = field(default_factory=list)
    """Additional arguments for `srun`. The argument `--kill-on-bad-exit` is always passed, so that all processes stop
    if one fails."""

    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Additional options for `sbatch`, without the leading dashes, such as `{mail-type: END, reservation: mine}`."""

    signal_delay_s: int = 120
    """Number of seconds before the time limit at which SLURM signals the run to save a checkpoint and stop. SLURM may
    send the signal up to a minute earlier. 0: no signal."""

    max_num_timeout: int = 20
    """Maximum number of times that a job is requeued after reaching the time limit or after a node failure. A requeued
    job continues from its newest checkpoint. 0: jobs are never requeued."""

    name: str
    """Name of the jobs in `squeue`."""

    submitit_folder: str
    """Folder for the batch script, and for the output and result of every process. `%j` is replaced by the SLURM job
    id."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, and that GPUs are requested in only one way."""
        yield from at_least(self, 1, "timeout_min", "nodes", "tasks_per_node", "array_parallelism", "cpus_per_task")
        yield from at_least(self, 0, "gpus_per_node", "gpus_per_task", "signal_delay_s", "max_num_timeout")
        yield from at_least(self, 0, "mem_gb", above=True)
        yield from self._time_to_run()
        asked = {key: self.get(key) for key in ("gpus_per_node", "gpus_per_task") if self.get(key)}
        if len(asked) > 1:
            yield Problem(asked, "request GPUs in two different ways", "Set one of them to null.")

    def _time_to_run(self) -> Iterator[Problem]:
        """Check that the signal cannot arrive as soon as a job starts, because the job would then be stopped and
        requeued forever."""
        if self.timeout_min < 1 or self.signal_delay_s < 1 or self.signal_at_s > 0:
            return
        given = {"timeout_min": self.timeout_min, "signal_delay_s": self.signal_delay_s}
        rule = f"SLURM may send the signal {_EARLY_S} s early, so the job would be stopped at the moment it starts"
        fixes = [f"{{timeout_min}} to {(self.signal_delay_s + _EARLY_S) // 60 + 1} or more"]
        longest = 60 * self.timeout_min - _EARLY_S
        fixes += [f"{{signal_delay_s}} to less than {longest}"] if longest > 1 else []
        yield Problem(given, rule, f"Set {', or '.join(fixes)}.")

    @property
    def signal_at_s(self) -> int:
        """Earliest time at which SLURM sends the signal, in seconds after the start of a job."""
        return 60 * self.timeout_min - self.signal_delay_s - _EARLY_S

    @property
    def tasks(self) -> int:
        """Number of processes per job."""
        return self.nodes * self.tasks_per_node


@config_dataclass
class LocalLauncherConfig(ConfigDict):
    """Resources for each job of a sweep on this machine. Every job is a separate process."""

    jobs_at_once: int = 1
    """Maximum number of jobs that run at the same time."""

    gpus_per_job: int = 1
    """Number of GPUs for the exclusive use of each job. 0: no GPUs. On a machine without GPUs, 1 has no effect and
    larger numbers are an error."""

    setup: list[str] = field(default_factory=list)
    """Shell commands that run before each job, such as `export NAME=value`."""

    submitit_folder: str
    """Folder for the output and result of every job. `%j` is replaced by the process id of the job."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges."""
        yield from at_least(self, 1, "jobs_at_once")
        yield from at_least(self, 0, "gpus_per_job")
