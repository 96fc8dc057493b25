"""A SLURM cluster on this machine: a controller `ctl` and nodes n1, n2, each a host of its own.

A host is a set of namespaces: network (address, loopback, a link to a bridge that can be cut), UTS (name), PID (killing
its first process is a power cut) and mount (/etc/hosts). Real daemons, from the packages of Debian or Ubuntu, real
munge, real processes; the disk is shared as it is on a cluster. Wants root. GPUs are device files that --gpus-per-node
can count; no rank opens one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client", "ip": "iproute2"}
NODES = ("n1", "n2")
PREFIX = f"krr{os.getpid()}"  # of the names of namespaces: another cluster, or what a killed one left, has others
NETWORK = "10.231.7"  # exists inside the namespaces only
DEADLINE = 300.0
"""Seconds after which a wait is given up and the test fails: far beyond what anything here takes."""


def until(condition: Callable[[], T], otherwise: Callable[[], str], deadline: float = DEADLINE) -> T:
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, otherwise()
        time.sleep(0.2)
    return value


def install(programs: dict[str, str] = PROGRAMS) -> None:
    """The packages that are missing, of {program: package}. Raises CalledProcessError with what apt said."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = sorted({package for program, package in programs.items() if shutil.which(program, path=path) is None})
    if missing:
        quiet = {
            "check": True,
            "stdout": subprocess.DEVNULL,
            "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        }
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(
            ["apt-get", "install", "-o", "DPkg::Lock::Timeout=300", "-y", "-qq", "--no-install-recommends", *missing],
            **quiet,
        )


def address(host: str) -> str:
    return f"{NETWORK}.1" if host == "ctl" else f"{NETWORK}.{10 + int(host[1:])}"


class Cluster:
    """Args: root: a directory of its own, with a short path (it holds sockets). cpus: of each node, on paper."""

    def __init__(self, root: Path, cpus: int = 2) -> None:
        self.root, self._cpus = root, cpus
        self._inits: dict[str, int] = {}
        self._outer: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        install()
        for name in ("etc", "log", "run", "state", "spool", "dev"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        self._configure()
        self._connect()
        for host in ("ctl", *NODES):
            self.boot(host)
        until(lambda: len(self.idle()) == len(NODES), self.logs)

    def idle(self) -> list[str]:
        found = self._inside("ctl", ["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"])
        return found.stdout.split()

    def stop(self) -> None:
        for host in list(self._inits):
            self.crash(host)
        for host in ("ctl", *NODES, "switch"):
            subprocess.run(["ip", "netns", "del", f"{PREFIX}-{host}"], check=False, capture_output=True)
        for host in NODES:
            freezer = Path("/sys/fs/cgroup/freezer") / f"slurm_{host}"
            for directory in sorted(freezer.rglob("*"), reverse=True) if freezer.exists() else ():
                if directory.is_dir():
                    with contextlib.suppress(OSError):  # a process that is still going
                        directory.rmdir()

    def run(self, *command: str, **variables: str) -> str:
        """What a command prints on the login host; it must succeed."""
        done = self._inside("ctl", command, **variables)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def on(self, host: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._inside(host, command, **variables)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        told = self.run("scontrol", "show", "job", number).split()
        return dict(pair.split("=", 1) for pair in told if "=" in pair)

    def logs(self) -> str:
        return "\n".join(
            f"--- {path}\n{path.read_text(errors='replace')[-1500:]}" for path in (self.root / "log").iterdir()
        )

    def boot(self, host: str) -> None:
        """Start a host and its daemons."""
        (self.root / "spool" / host).mkdir(exist_ok=True)
        ready = self.root / "run" / f"{host}.ready"
        ready.unlink(missing_ok=True)
        first = (
            f"hostname {host}; mount --bind {self.root}/etc/hosts /etc/hosts; trap 'exit 0' TERM; : > {ready};"
            " while :; do sleep 3600 & wait -n; done"
        )
        outer = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{PREFIX}-{host}", "unshare", "--uts", "--pid", "--mount", "--fork",
             "--kill-child", "--mount-proc", "bash", "-c", first],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until(ready.exists, lambda: f"{host} does not start")
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        self._inits[host], self._outer[host] = int(children[0]), outer
        run = self.root / "run"
        if host == "ctl":
            self._daemon(host, "munged", "--force", f"--key-file={self.root}/etc/munge.key", f"--socket={run}/munge.socket",
                         f"--pid-file={run}/munged.pid", f"--log-file={self.root}/log/munged.log", f"--seed-file={run}/munged.seed")  # fmt: skip
            self._daemon(host, "slurmctld", "-i")
        else:
            self._daemon(host, "slurmd", "-N", host)

    def crash(self, host: str) -> None:
        """Cut the power of a host: all of its processes are gone at once."""
        os.kill(self._inits.pop(host), signal.SIGKILL)
        self._outer.pop(host).wait()

    def cut(self, host: str) -> None:
        """Pull the network cable of a host: its processes go on."""
        subprocess.run(["ip", "-n", f"{PREFIX}-switch", "link", "set", host, "down"], check=True)

    def mend(self, host: str) -> None:
        subprocess.run(["ip", "-n", f"{PREFIX}-switch", "link", "set", host, "up"], check=True)

    @contextlib.contextmanager
    def noticing(self, seconds: int) -> Iterator[None]:
        """Let the controller take a node that does not answer for so many seconds as lost, for a time."""
        conf = self.root / "etc" / "slurm.conf"
        usual = conf.read_text()
        try:
            conf.write_text(re.sub("SlurmdTimeout=.*", f"SlurmdTimeout={seconds}", usual))
            self.run("scontrol", "reconfigure")
            yield
        finally:
            conf.write_text(usual)
            self.run("scontrol", "reconfigure")

    def _inside(self, host: str, command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "-t", str(self._inits[host]), "--net", "--uts", "--pid", "--mount", f"--wd={os.getcwd()}"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        environment = {**kept, "SLURM_CONF": f"{self.root}/etc/slurm.conf", **variables}
        return subprocess.run([*enter, *command], env=environment, capture_output=True, text=True, check=False)

    def _daemon(self, host: str, *command: str) -> None:
        # To a file: the daemon that it leaves would hold a pipe open.
        with open(self.root / "log" / f"{command[0]}-{host}.out", "wb") as out:
            enter = ["nsenter", "-t", str(self._inits[host]), "--net", "--uts", "--pid", "--mount"]
            environment = {**os.environ, "SLURM_CONF": f"{self.root}/etc/slurm.conf"}
            subprocess.run(
                [*enter, *command], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True
            )

    def _connect(self) -> None:
        def ip(*arguments: str) -> None:
            subprocess.run(["ip", *arguments], check=True)

        switch = f"{PREFIX}-switch"
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for host in ("ctl", *NODES):
            name = f"{PREFIX}-{host}"
            ip("netns", "add", name)
            ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "set", host, "master", "br0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address(host)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

    def _configure(self) -> None:
        etc, root = self.root / "etc", self.root
        key = etc / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        (etc / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address(host)} {host}\n" for host in ("ctl", *NODES))
        )
        for number in range(2):
            subprocess.run(["mknod", str(root / "dev" / f"gpu{number}"), "c", "1", "3"], check=True)
        (etc / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={root}/dev/gpu[0-1]\n")
        (etc / "cgroup.conf").write_text(
            "CgroupMountpoint=/sys/fs/cgroup\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n"
        )
        # As on a real cluster, a signal to a step reaches the process of each task alone; that wants the v1 freezer.
        proctrack = "cgroup" if " /sys/fs/cgroup/freezer " in Path("/proc/mounts").read_text() else "linuxproc"
        (etc / "slurm.conf").write_text(f"""\
ClusterName=test
SlurmctldHost=ctl({address("ctl")})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
InactiveLimit=0
KillWait=5
CompleteWait=0
MinJobAge=600
NodeName=n[1-2] NodeAddr={NETWORK}.[11-12] CPUs={self._cpus} RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
""")
