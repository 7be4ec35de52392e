"""What a job of a sweep gets: from SLURM, or on this machine. Names are those of Hydra's submitit plugin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any

from xlstm_hydra.problems import Problem

from ._config_dict import ConfigDict, config_dataclass
from ._rules import at_least

_EARLY_S = 60
"""SLURM may send a signal so many seconds earlier than it was asked to."""


@config_dataclass
class SlurmLauncherConfig(ConfigDict):
    """What each job of a sweep asks SLURM for, as an element of one array. null: not asked for."""

    partition: str | None = None
    """Names of partitions, with commas between them. null: the cluster's default."""

    account: str | None = None
    """Who pays."""

    qos: str | None = None
    """Quality of service."""

    constraint: str | None = None
    """Features that the nodes must have."""

    exclude: str | None = None
    """Nodes that must not be used, such as `node[3-5]`."""

    timeout_min: int = 60
    """Time limit of a job, in minutes."""

    nodes: int = 1
    """Nodes of a job."""

    tasks_per_node: int = 1
    """Processes that `srun` starts on each node, which train one model together."""

    gpus_per_node: int | None = None
    """GPUs on each node, which its processes share evenly."""

    gpus_per_task: int | None = None
    """GPUs that each process has for itself, and sees no others."""

    gres: str | None = None
    """Other resources of each node, such as `gpu:a100:4`."""

    cpus_per_task: int | None = None
    """CPU cores of each process."""

    mem_gb: float | None = None
    """Memory on each node, in GiB."""

    array_parallelism: int = 256
    """Jobs of the sweep that run at the same time, at most."""

    setup: list[str] = field(default_factory=list)
    """Lines of the batch script that come before the run, such as `module load cuda` or `export NAME=value`."""

    srun_args: list[str] = field(default_factory=list)
    """Further arguments of `srun`. A process that fails always ends the others (`--kill-on-bad-exit`)."""

    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Further options of `sbatch` without their dashes, such as `{mail-type: END, reservation: mine}`."""

    signal_delay_s: int = 120
    """Seconds before the time limit at which SLURM sends the signal on which a run saves and ends. SLURM may be up to a
    minute earlier. 0: no signal before the time limit."""

    max_num_timeout: int = 20
    """How often a job may be put back into the queue, to go on from its newest checkpoint: when the time limit came,
    and when a node failed. 0: never."""

    name: str
    """What `squeue` calls the jobs."""

    submitit_folder: str
    """Where the script, the output of every process and its result are; `%j` is the job's number in SLURM."""

    def rules(self) -> Iterator[Problem]:
        """Ranges; GPUs are asked for in one way."""
        yield from at_least(self, 1, "timeout_min", "nodes", "tasks_per_node", "array_parallelism", "cpus_per_task")
        yield from at_least(self, 0, "gpus_per_node", "gpus_per_task", "signal_delay_s", "max_num_timeout")
        yield from at_least(self, 0, "mem_gb", above=True)
        yield from self._time_to_run()
        asked = {key: self.get(key) for key in ("gpus_per_node", "gpus_per_task") if self.get(key)}
        if len(asked) > 1:
            yield Problem(asked, "say the same in two ways", "Set one of them to null.")

    def _time_to_run(self) -> Iterator[Problem]:
        """The signal must not come as soon as a job starts: it would be stopped, requeued, and stopped again."""
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
        """Seconds after the start of a job at which the signal may come."""
        return 60 * self.timeout_min - self.signal_delay_s - _EARLY_S

    @property
    def tasks(self) -> int:
        """Processes of a job."""
        return self.nodes * self.tasks_per_node


@config_dataclass
class LocalLauncherConfig(ConfigDict):
    """What each job of a sweep gets on this machine, where it is a process of its own."""

    jobs_at_once: int = 1
    """Jobs that run at the same time."""

    gpus_per_job: int = 1
    """GPUs that each of them sees, which are no other's. 0: none. Where there are no GPUs, 1 has no effect, and more
    are refused."""

    setup: list[str] = field(default_factory=list)
    """Lines of the shell that come before each job, such as `export NAME=value`."""

    submitit_folder: str
    """Where the output of every job and its result are; `%j` is the number of its process."""

    def rules(self) -> Iterator[Problem]:
        """Ranges."""
        yield from at_least(self, 1, "jobs_at_once")
        yield from at_least(self, 0, "gpus_per_job")
