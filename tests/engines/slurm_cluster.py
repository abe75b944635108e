"""A real Slurm on this machine, from Debian's packages: three nodes of two simulated GPUs each."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = ("n1", "n2", "n3")
_WAIT_S = 200
_CONF = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
KillWait=30
SlurmdTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=gpu Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=n[1-3] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
_NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 Gres=gpu:fake:2"
_GRES = "AutoDetect=off\nNodeName=n[1-3] Name=gpu Type=fake File={folder}/fakegpu[0-1]\n"


class SlurmCluster:
    """Start and stop the controller and the nodes, and stop a node as a power cut does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self):
        (self.folder / "state").mkdir(parents=True)
        host, (port, *node_ports) = platform.node(), find_free_ports(1 + len(NODES))
        nodes = [_NODE.format(node=node, host=host, port=port) for node, port in zip(NODES, node_ports, strict=True)]
        conf = _CONF.format(host=host, port=port, folder=self.folder, nodes="\n".join(nodes))
        self.conf.write_text(conf.lstrip())
        (self.folder / "gres.conf").write_text(_GRES.format(folder=self.folder))
        # Slurm accepts only devices as GPUs.
        for number, minor in ((0, 3), (1, 5)):
            os.mknod(self.folder / f"fakegpu{number}", 0o666 | 0o020000, os.makedev(1, minor))
        self._start_munge()
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()
        return self

    def __exit__(self, *exc):
        self.run("scancel", "--user", "root", check=False)
        for name in NODES:
            self.lose_node(name)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()

    def run(self, *command, check=True):
        """Run one of Slurm's programs and return its standard output."""
        completed = subprocess.run(
            ["timeout", "30", *command], env=self.environment, text=True, capture_output=True, check=False
        )
        assert not check or completed.returncode == 0, completed
        return completed.stdout.strip()

    def list_tasks(self):
        """Return the state of each task in the queue by its job."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def cancel_all(self):
        """Kill all jobs, and wait until all nodes are there and nothing runs on them."""
        self.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        self.run("scancel", "--user=root", check=False)
        self.wait_until_idle()

    def processes(self, node):
        """Return the processes of the jobs on a node, found by their environment, and the step managers above them."""
        variables = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.conf}".encode()}
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if variables <= set((path / "environ").read_bytes().split(b"\0")):
                    found.add(int(path.name))
                    parent = (path / "status").read_text().split("PPid:\t")[1].split("\n")[0]
                    if Path("/proc", parent, "cmdline").read_bytes().startswith(b"slurmstepd:"):
                        found.add(int(parent))
        return found

    def start_node(self, node):
        """Let a node join the cluster, or return to it."""
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-c", "-N", node)

    def wait_until_idle(self):
        """Wait until all nodes are there and nothing runs on them."""
        deadline = time.monotonic() + _WAIT_S
        while set(self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()) != {"idle"}:
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.3)

    def lose_node(self, node):
        """Kill a node's daemon, its step managers and all that runs on it, before any of them can react."""
        daemon = self._daemons[node]
        daemon.send_signal(signal.SIGSTOP)
        stopped = set()
        while running := self.processes(node) - stopped:
            for pid in running:
                _send(signal.SIGSTOP, pid)
            stopped |= running
        for pid in stopped:
            _send(signal.SIGKILL, pid)
        daemon.kill()
        daemon.wait()

    def _start(self, name, *command):
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [command[0], *command[1:], "-f", str(self.conf)], env=self.environment, stdout=log, stderr=log
            )

    def _start_munge(self):
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode != 0:
            subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged", "--force"], check=True)


def find_free_ports(n):
    """Return ports that nothing listens on, so that clusters of several test runs do not meet."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


def _send(number, pid):
    with suppress(ProcessLookupError):
        os.kill(pid, number)
