"""A real Slurm on this machine: three nodes of two pretended GPUs each, from Debian's packages."""

import os
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path

NODES = ("n1", "n2", "n3")
_CONF = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26817
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
KillWait=10
SlurmdTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[26821-26823] CPUs=4 RealMemory=4000 Gres=gpu:fake:2
PartitionName=gpu Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes=n[1-3] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
_GRES = "AutoDetect=off\nNodeName=n[1-3] Name=gpu Type=fake File={folder}/fakegpu[0-1]\n"


class SlurmCluster:
    """Starts and stops the controller and the nodes, and takes nodes away as a power cut does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self):
        (self.folder / "state").mkdir(parents=True)
        names = {"host": platform.node(), "folder": self.folder}
        self.conf.write_text(_CONF.format(**names).lstrip())
        (self.folder / "gres.conf").write_text(_GRES.format(**names))
        # Slurm gives jobs only GPUs that are devices.
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
        """Run one of Slurm's programs and give what it prints."""
        done = subprocess.run(
            ["timeout", "30", *command], env=self.environment, text=True, capture_output=True, check=False
        )
        assert not check or done.returncode == 0, done
        return done.stdout.strip()

    def start_node(self, node):
        """Let a node join the cluster, or come back to it."""
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-c", "-N", node)

    def wait_until_idle(self):
        """Wait until all nodes are there and nothing runs on them."""
        deadline = time.monotonic() + 60
        while set(self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()) != {"idle"}:
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.3)

    def lose_node(self, node):
        """Kill a node's daemon, its step managers and all that runs on it, at once and without a word."""
        self._daemons[node].send_signal(signal.SIGSTOP)
        while victims := [pid for pid in _processes_of(node, self.folder) if pid != self._daemons[node].pid]:
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        self._daemons[node].kill()
        self._daemons[node].wait()

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


def _processes_of(node, folder):
    """Find the processes of a node by their environment, and its step managers by their folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURMD_NODENAME={node}".encode() in variables and f"SLURM_CONF={folder}/slurm.conf".encode() in variables:
            found.append(int(path.name))
    return found
