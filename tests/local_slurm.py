"""A Slurm of a few simulated nodes on this machine, for tests: real daemons, on 127.0.0.1 alone.

Needs root, and slurmctld, slurmd, munged and the client commands on the path.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

COMMANDS = "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue"
BOUND = 60  # s that daemons have to come up
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=15
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> str | None:
    """Say in one line what this machine lacks, and how to get it; None: nothing."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    lacking = [name for name in COMMANDS if not shutil.which(name, path=path)]
    if lacking:
        return (
            f"no {', '.join(lacking)} here; to install: apt-get install --no-install-recommends "
            f"slurmctld slurmd slurm-client munge"
        )
    return None if os.geteuid() == 0 else "Slurm's daemons are started for the tests: run as root"


class Slurm:
    """A cluster that lives within `with`; sockets lie in its folder, whose path must be short."""

    def __init__(self, folder: Path, nodes: int):
        self.folder, self.nodes = folder, nodes
        self.environment = {
            **os.environ,
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def __enter__(self) -> "Slurm":
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)  # munged is particular about who may enter
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        port = _free_ports(self.nodes + 1)
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(
            host=host, port=port, folder=folder, nodes=self.nodes, first=port + 1,
            last=port + self.nodes,
        )  # fmt: skip
        (folder / "slurm.conf").write_text(text)
        munged = ["munged", f"--key-file={key}", f"--socket={folder / 'munge.sock'}"]
        munged += [f"--{name}-file={folder / f'munged.{name}'}" for name in ("pid", "log", "seed")]
        try:
            self.run(*munged)
            self.run("slurmctld", "-c")
            for n in range(1, self.nodes + 1):
                (folder / "spool" / f"n{n}").mkdir()
                self.run("slurmd", "-N", f"n{n}")
            end = time.monotonic() + BOUND
            while self.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D").strip() != str(
                self.nodes
            ):
                if time.monotonic() > end:
                    raise TimeoutError(self.run("sinfo") + (folder / "slurmctld.log").read_text())
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(subprocess.SubprocessError, FileNotFoundError):
            self.run("scancel", "--user=root")
            end = time.monotonic() + BOUND
            while self.run("squeue", "-h").strip() and time.monotonic() < end:
                time.sleep(0.2)
        for name in (*(f"slurmd.n{n}" for n in range(1, self.nodes + 1)), "slurmctld", "munged"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                end = time.monotonic() + BOUND
                while time.monotonic() < end:  # they write into the folder until then
                    os.kill(pid, 0)
                    time.sleep(0.05)

    def run(self, *line: object, **more) -> str:
        """Run a command with this cluster's configuration; gives what it printed."""
        done = subprocess.run(
            list(map(str, line)), capture_output=True, text=True, check=False, timeout=BOUND,
            env=self.environment | more.pop("env", {}), stdin=subprocess.DEVNULL, **more,
        )  # fmt: skip
        if done.returncode:
            raise subprocess.SubprocessError(f"{line}: {done.stdout}{done.stderr}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """Give the states of all jobs that the cluster remembers, by name."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%j %T").splitlines()
        return dict(line.split() for line in lines)


def _free_ports(count: int) -> int:
    """Find the first of some ports in a row that are free now."""
    for first in range(21000 + os.getpid() % 8000, 60000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports in a row")
