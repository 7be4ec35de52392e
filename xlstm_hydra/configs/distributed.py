"""How many processes a run has, how they find each other, and which devices are neighbours."""

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
    """One process, or several that train one model together. All of them get the same command."""

    name: str = field(default="none", metadata=affects(LAYOUT, compiled=False))
    """none: one process, whatever the environment says. auto: as many as `srun` started, else one. explicit: as
    `coordinator_address`, `num_processes` and `process_id` say."""

    coordinator_address: str | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """`host:port` of process 0, which all others can reach; process 0 opens the port. null: not explicit."""

    num_processes: int | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Processes in the run. null: not explicit."""

    process_id: int | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Number of this process, from 0. Process 0 writes the run folder. null: not explicit."""

    local_device_ids: list[int] | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Numbers of the GPUs that this process uses, of those that it sees. null: all, or its share of them where `srun`
    put several processes on a host and gave no process GPUs of its own. There is no such choice on a CPU or TPU."""

    heartbeat_timeout_seconds: int = field(default=20, metadata=affects(LAYOUT, compiled=False))
    """A process that has given no sign of life for this long is dead, and the others end. Without effect where `auto`
    finds one process."""

    initialization_timeout_seconds: int = field(default=120, metadata=affects(LAYOUT, compiled=False))
    """How long processes wait for each other at the start and at the end. Without effect where `auto` finds one
    process."""

    device_order: list[str] | None = field(default=None, metadata=affects(LAYOUT))
    """The four mesh axes from the one whose devices are closest together, inside a host, to the one whose devices are
    farthest apart. null: tensor, FSDP, pipeline, data axis."""

    def rules(self) -> Iterator[Problem]:
        """What belongs to which name; ranges."""
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
            yield Problem({"local_device_ids": ids}, "must be different numbers from 0, at least one")

    def _address_rules(self) -> Iterator[Problem]:
        """All three are there, and each makes sense."""
        missing = [key for key in _ADDRESS if getattr(self, key) is None]
        if missing:
            given = {"name": self.name} | {key: None for key in missing}
            fix = "Set {coordinator_address}=host:port and {num_processes}, and another {process_id} in each process."
            yield Problem(given, "several processes need all of address, number and count", fix)
        if self.coordinator_address is not None and not _is_address(self.coordinator_address):
            rule = "must be host:port, with a port from 1 to 65535"
            given = {"coordinator_address": self.coordinator_address}
            yield Problem(given, rule, "For example {coordinator_address}=node7:61234.")
        if self.process_id is not None and self.num_processes is not None and self.process_id >= self.num_processes > 0:
            given = {"process_id": self.process_id, "num_processes": self.num_processes}
            rule = f"processes are numbered from 0 to {self.num_processes - 1}"
            yield Problem(given, rule, "Set {process_id} lower, or {num_processes} higher.")

    def lasting(self) -> DistributedConfig:
        """What belongs in the record of a run: without who and where its processes were, which the next start says."""
        name = "none" if self.name == "none" else "auto"
        return DistributedConfig(name=name, device_order=self.device_order)

    @property
    def known_processes(self) -> int | None:
        """Processes in the run, or None where only the environment of the command tells."""
        return {"none": 1, "explicit": self.num_processes}.get(self.name)

    def process_info(self, environ: Mapping[str, str]) -> ProcessInfo | None:
        """Where this process is among several, or None where it is the only one.

        Args:
            environ: the environment of the process.

        Raises:
            ConfigError: SLURM's part of the environment makes no sense. The keys are relative to this config.
        """
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
