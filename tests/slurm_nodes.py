"""A real Slurm of two nodes on this machine: its own daemons, munge too, folder and free ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "munged")
CONF = """\
ClusterName=nightloom-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmctldTimeout=30
SlurmdTimeout=15
KillWait=2
CompleteWait=0
MinJobAge=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=5 State=UP
PartitionName=closed Nodes=ALL MaxTime=60 State=DOWN
"""


def lacks() -> str:
    """Why no Slurm can be started here; "" where it can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here"
    return "" if os.geteuid() == 0 else "only root can start Slurm"


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Slurm while the block runs, SLURM_CONF set."""
    pids: list[int] = []
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        _start(folder, pids)
        yield
    finally:
        _stop(pids)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def says(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def _start(folder: Path, pids: list[int]) -> None:
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    # --force: the folder is root's alone, which munged takes for a mistake.
    options = {"key-file": key, "socket": folder / "munge.socket",
               "pid-file": folder / "munged.pid",
               "log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}  # fmt: skip
    _daemon(folder, "munged", "--force", *(f"--{k}={v}" for k, v in options.items()))
    pids.append(_pid(folder / "munged.pid"))
    host = socket.gethostname().split(".")[0]
    conf = CONF.format(host=host, folder=folder, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(conf)
    _daemon(folder, "slurmctld", "-c")
    pids.append(_pid(folder / "slurmctld.pid"))
    for node in ("n1", "n2"):
        _daemon(folder, "slurmd", "-N", node)
        pids.append(_pid(folder / f"slurmd.{node}.pid"))
    deadline = time.monotonic() + 30
    while says("sinfo", "-h", "-o", "%D", "-t", "idle", "-p", "main").strip() != "2":
        assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
        time.sleep(0.2)


def _daemon(folder: Path, *command: str) -> None:
    with (folder / f"{command[0]}.start").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=30, check=True)


def _pid(file: Path) -> int:
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < deadline, f"{file} was not written"
        time.sleep(0.1)
    return int(file.read_text())


def _stop(pids: list[int]) -> None:
    """End the jobs, then the daemons, the last started first."""
    if len(pids) == 4:
        subprocess.run(["scancel", "--user=root"], timeout=30, check=False)
        deadline = time.monotonic() + 20
        while says("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.3)
    for pid in reversed(pids):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
