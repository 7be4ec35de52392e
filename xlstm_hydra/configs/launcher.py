"""Resources of the jobs of a sweep, on SLURM or on this machine. Fields have the names of Hydra's submitit plugin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._rules import at_least

_EARLY_S = 60
"""SLURM may send a signal up to this many seconds earlier than requested."""


@config_dataclass
class SlurmLauncherConfig(ConfigDict):
    """Resources that each job of a sweep requests from SLURM. A sweep is one job array. null: not requested."""

    partition: str | None = None
    """Partitions, separated by commas. null: the cluster's default."""

    account: str | None = None
    """Account that is charged for the jobs. null: the user's default."""

    qos: str | None = None
    """Quality of service. null: the user's default."""

    constraint: str | None = None
    """Features that the nodes must have. null: any nodes."""

    exclude: str | None = None
    """Nodes that must not be used, such as `node[3-5]`. null: none."""

    timeout_min: int = 60
    """Time limit of a job, in minutes."""

    nodes: int = 1
    """Number of nodes per job."""

    tasks_per_node: int = 1
    """Processes that `srun` starts on each node. All processes of a job train one model together."""

    gpus_per_node: int | None = None
    """GPUs on each node, shared evenly by its processes. null: not requested."""

    gpus_per_task: int | None = None
    """GPUs of each process, which sees no others. null: not requested."""

    gres: str | None = None
    """Generic resources of each node, such as `gpu:a100:4`. null: not requested."""

    cpus_per_task: int | None = None
    """CPU cores per process. null: the cluster's default."""

    mem_gb: float | None = None
    """Memory on each node, in GiB. null: the cluster's default."""

    array_parallelism: int = 256
    """Maximum number of jobs of the sweep that run at the same time."""

    setup: list[str] = field(default_factory=list)
    """Lines of the batch script before the run, such as `module load cuda` or `export NAME=value`."""

    srun_args: list[str] = field(default_factory=list)
    """Additional arguments of `srun`. If one process fails, the others are always stopped (`--kill-on-bad-exit`)."""

    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Additional options of `sbatch` without their dashes, such as `{mail-type: END, reservation: mine}`."""

    signal_delay_s: int = 120
    """Seconds before the time limit at which SLURM signals the run to save and stop. SLURM may send the signal up to a
    minute earlier. 0: no signal."""

    max_num_timeout: int = 20
    """Number of times that a job may be requeued after the time limit or a node failure. It then continues from its
    newest checkpoint. 0: never."""

    name: str
    """Name of the jobs in `squeue`."""

    submitit_folder: str
    """Folder for the batch script, and the output and result of every process. `%j` is the SLURM job id."""

    def rules(self) -> Iterator[Problem]:
        """Check ranges, and that GPUs are requested in one way only."""
        yield from at_least(self, 1, "timeout_min", "nodes", "tasks_per_node", "array_parallelism", "cpus_per_task")
        yield from at_least(self, 0, "gpus_per_node", "gpus_per_task", "signal_delay_s", "max_num_timeout")
        yield from at_least(self, 0, "mem_gb", above=True)
        yield from self._time_to_run()
        asked = {key: self.get(key) for key in ("gpus_per_node", "gpus_per_task") if self.get(key)}
        if len(asked) > 1:
            yield Problem(asked, "request GPUs in two different ways", "Set one of them to null.")

    def _time_to_run(self) -> Iterator[Problem]:
        """Check that the signal does not arrive as soon as a job starts, which would stop and requeue it forever."""
        if self.timeout_min < 1 or self.signal_delay_s < 1 or self.signal_at_s > 0:
            return
        given = {"timeout_min": self.timeout_min, "signal_delay_s": self.signal_delay_s}
        rule = f"SLURM may send the signal {_EARLY_S} s early, so the job would be stopped at the moment it starts"
        fixes = [f"{{timeout_min}} to {(self.signal_delay_s + _EARLY_S) // 60 + 1} or more"]
        longest = 60 * self.timeout_min - _EARLY_S
        fixes += [f"{{signal_delay_s}} below {longest}"] if longest > 1 else []
        yield Problem(given, rule, f"Set {', or '.join(fixes)}.")

    @property
    def signal_at_s(self) -> int:
        """Earliest time of the signal, in seconds after the start of a job."""
        return 60 * self.timeout_min - self.signal_delay_s - _EARLY_S

    @property
    def tasks(self) -> int:
        """Number of processes per job."""
        return self.nodes * self.tasks_per_node


@config_dataclass
class LocalLauncherConfig(ConfigDict):
    """Resources of each job of a sweep on this machine. Every job is a separate process."""

    jobs_at_once: int = 1
    """Maximum number of jobs that run at the same time."""

    gpus_per_job: int = 1
    """GPUs that each job sees and shares with no other. 0: no GPUs. On a machine without GPUs, 1 has no effect and
    larger numbers are an error."""

    setup: list[str] = field(default_factory=list)
    """Shell commands before each job, such as `export NAME=value`."""

    submitit_folder: str
    """Folder for the output and result of every job. `%j` is the process id of the job."""

    def rules(self) -> Iterator[Problem]:
        """Check ranges."""
        yield from at_least(self, 1, "jobs_at_once")
        yield from at_least(self, 0, "gpus_per_job")
