"""Config group `distributed`: the processes of a run, their connection, and the order of their devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from xlstm_hydra.problems import ConfigError, Problem

from ._config_dict import ConfigDict, config_dataclass
from ._fields import LAYOUT, affects
from ._process import ProcessInfo, slurm_process
from ._rules import at_least, one_of, unused

_ADDRESS = ("coordinator_address", "num_processes", "process_id")
_TIMEOUTS = ("heartbeat_timeout_seconds", "initialization_timeout_seconds")


@config_dataclass
class DistributedConfig(ConfigDict, schema="distributed"):
    """The processes of a run: one process, or several that train one model together and are started with the same
    command."""

    name: str = field(default="none", metadata=affects(LAYOUT, compiled=False))
    """Method of finding the processes of the run: none, auto or explicit. none: a single process, regardless of the
    environment. auto: the processes started by `srun`, or a single process without `srun`. explicit: the processes
    given by `coordinator_address`, `num_processes` and `process_id`."""

    coordinator_address: str | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Address of process 0 as `host:port`, which all other processes must be able to reach. Required if `name` is
    explicit, otherwise null."""

    num_processes: int | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Number of processes in the run. Required if `name` is explicit, otherwise null."""

    process_id: int | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Index of this process, from 0. Process 0 writes the run folder. Required if `name` is explicit, otherwise
    null."""

    local_device_ids: list[int] | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Indices of the GPUs that this process uses, among the GPUs visible to it. null: all visible GPUs, or an equal
    share of them if `srun` started several processes on the host and all of these see the same GPUs. Not supported on
    CPU and TPU."""

    heartbeat_timeout_seconds: int = field(default=20, metadata=affects(LAYOUT, compiled=False))
    """Timeout in seconds after which a process without a heartbeat is considered dead and the other processes stop. No
    effect with a single process."""

    initialization_timeout_seconds: int = field(default=120, metadata=affects(LAYOUT, compiled=False))
    """Timeout in seconds for processes to wait for each other at the start and at the end of a run. No effect with a
    single process."""

    device_order: list[str] | None = field(default=None, metadata=affects(LAYOUT))
    """Names of the four mesh axes, from the axis whose devices are closest together (inside a host) to the axis whose
    devices are farthest apart. null: tensor, FSDP, pipeline, data."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, and that every field that is set has an effect with this `name`."""
        yield from one_of(self, "name", ("none", "auto", "explicit"))
        yield from at_least(self, 1, "num_processes", *_TIMEOUTS)
        yield from at_least(self, 0, "process_id")
        if self.name == "explicit":
            yield from self._address_rules()
        elif self.name in ("none", "auto"):
            for key in _ADDRESS:
                fix = f"Set {{name}}=explicit, or leave {{{key}}} at null."
                yield from unused(self, key, "name", self.name, fix)
        if self.name == "none":
            for key in _TIMEOUTS:
                yield from unused(self, key, "name", self.name)
        ids = self.local_device_ids
        if ids is not None and (not ids or len(set(ids)) < len(ids) or min(ids) < 0):
            yield Problem(
                {"local_device_ids": ids}, "must contain at least one number; all must be different, and 0 or more"
            )

    def _address_rules(self) -> Iterator[Problem]:
        """Check that address, number of processes and process id are set and valid."""
        missing = [key for key in _ADDRESS if getattr(self, key) is None]
        if missing:
            given = {"name": self.name} | {key: None for key in missing}
            fix = (
                "Set {coordinator_address}=host:port and {num_processes}, and a different {process_id} in each process."
            )
            yield Problem(given, "address, number of processes and process id are all required", fix)
        if self.coordinator_address is not None and not _is_address(self.coordinator_address):
            rule = "must be host:port, with a port from 1 to 65535"
            given = {"coordinator_address": self.coordinator_address}
            yield Problem(given, rule, "For example {coordinator_address}=node7:61234.")
        if self.process_id is not None and self.num_processes is not None and self.process_id >= self.num_processes > 0:
            given = {"process_id": self.process_id, "num_processes": self.num_processes}
            rule = f"processes are numbered from 0 to {self.num_processes - 1}"
            yield Problem(given, rule, "Lower {process_id}, or raise {num_processes}.")

    def lasting(self) -> DistributedConfig:
        """Return the part of the config that is saved with a run. Addresses and process ids are not saved, because they
        differ at every start."""
        name = "none" if self.name == "none" else "auto"
        return DistributedConfig(name=name, device_order=self.device_order)

    @property
    def known_processes(self) -> int | None:
        """Number of processes in the run, or None if it depends on the environment variables at launch."""
        return {"none": 1, "explicit": self.num_processes}.get(self.name)

    def process_info(self, environ: Mapping[str, str]) -> ProcessInfo | None:
        """Return the address, index and GPUs of this process, or None if the run has a single process.

        Args:
            environ: the environment variables of the process.

        Raises:
            ConfigError: the environment variables of SLURM are inconsistent. Keys in problems are relative to this
                config."""
        if self.name == "none":
            return None
        if self.name == "auto":
            try:
                found = slurm_process(environ)
            except ValueError as error:
                fix = "Start the run with srun, or set {name}=none for one process."
                raise ConfigError([Problem({"name": self.name}, str(error), fix)]) from None
        else:
            assert self.coordinator_address is not None and self.num_processes is not None
            assert self.process_id is not None
            found = ProcessInfo(self.coordinator_address, self.num_processes, self.process_id, None)
        if found is None or self.local_device_ids is None:
            return found
        return found._replace(local_device_ids=tuple(self.local_device_ids))


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host.strip()) and port.isascii() and port.isdigit() and 0 < int(port) < 2**16
