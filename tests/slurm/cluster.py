"""A SLURM of four virtual nodes on this machine: its own munge, controller and node daemons, as root, without systemd
and cgroups, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
PACKAGES = "slurmctld slurmd slurm-client munge"
NODES = ("node1", "node2", "node3", "node4")
START_SECONDS = 30

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=15
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
MpiDefault=none
ReturnToService=2
KillWait=3
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=tests Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
"""


def why_not() -> str | None:
    """Return the reason why no cluster can be started here; None if there is none."""
    if missing := [name for name in PROGRAMS if _program(name) is None]:
        return f"SLURM is not installed ({', '.join(missing)} missing): apt-get install {PACKAGES}"
    return None if os.geteuid() == 0 else "SLURM's daemons want to be started by root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Cluster:
    """A cluster that runs between `start` and `stop`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.unseen = home / "unseen"  # by the nodes
        self.environment = {"SLURM_CONF": str(home / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons, and wait until the nodes are idle."""
        for folder in ("state", "unseen", *NODES):
            (self.home / folder).mkdir(parents=True)
        self.home.chmod(0o755)
        ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=8192"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        text = CONF.format(host=socket.gethostname(), home=self.home, ports=ports, nodes="\n".join(nodes))
        (self.home / "slurm.conf").write_text(text)
        names = "".join(f"127.0.0.1 {name}\n" for name in NODES)
        (self.home / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n{names}")
        self._start_munge()
        self._run("slurmctld", "-f", self.environment["SLURM_CONF"])
        # Jobs must find the nodes by their names, without a change to the machine's own file.
        mounts = f"mount --bind {self.home}/hosts /etc/hosts && mount -t tmpfs none {self.unseen}"
        inside = f"{mounts} && exec {_program('slurmd')} -N $0"
        for name in NODES:
            self._run("unshare", "--mount", "--propagation=private", "sh", "-c", inside, name)
        self._wait_until_idle()

    def _start_munge(self) -> None:
        key = self.home / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "munge.seed"
        self._run("munged", "--force", *(f"--{option}={self.home / file}" for option, file in files.items()))

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(subprocess.CalledProcessError):
                idle = self.ask("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split()
                if len(set(idle)) == len(NODES):
                    return
            time.sleep(0.2)
        logs = [f"{log.name}:\n{log.read_text()[-2000:]}" for log in self.home.glob("*.log")]
        raise RuntimeError("\n".join(["the nodes are not idle", *logs]))

    def ask(self, *command: str) -> str:
        """Return the output of a SLURM command."""
        return self._run(*command).stdout

    def _run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [_program(name) or name, *arguments]
        environment = os.environ | self.environment
        with open(self.home / f"{name}.out", "w+") as file:  # daemons keep it open: no pipe
            done = subprocess.run(command, env=environment, stdout=file, stderr=file, timeout=60)
            file.seek(0)
            text = file.read()
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, text)
        return subprocess.CompletedProcess(command, 0, text, "")

    def stop(self) -> None:
        """End all jobs and all daemons."""
        with suppress(Exception):
            self.ask("scancel", "--user=root")
            deadline = time.monotonic() + 10
            while self.ask("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.5)
        for file in (*(self.home / f"{name}.pid" for name in NODES), self.home / "slurmctld.pid"):
            _end(file)
        _end(self.home / "munged.pid")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    try:
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _end(pid_file: Path) -> None:
    """End the process with the ID in a file, and remove the file."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 2)):
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            while time.monotonic() < deadline and not _is_gone(pid):
                time.sleep(0.1)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True
