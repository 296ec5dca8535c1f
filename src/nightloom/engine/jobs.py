"""Workers as jobs of a queue, by dask-jobqueue: kept at a number, ended before the walltime."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import dask
from distributed import Client
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.security import Security

from nightloom.engine.settings import JobSettings, TlsSection
from nightloom.engine.workers import exports
from nightloom.errors import ConfigError, RunError

CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
}
# How a queue is asked what became of jobs; their ids follow.
ASK_QUEUE = {
    "slurm": ("squeue", "--noheader", "--states=all", "--format=%i %T %r", "--jobs"),
    "pbs": ("qstat", "-x"),
    "lsf": ("bjobs", "-noheader", "-o", "jobid stat pend_reason"),
    "sge": ("qstat", "-j"),
}
# Of Slurm: the job will not come, or come back.
OVER = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "Invalid job id", "NODE_FAIL",
    "OUT_OF_MEMORY", "TIMEOUT",
)  # fmt: skip
JOB_NAME = "nightloom"
LOOK_EVERY_S = 2.0
LOST_AFTER_S = 6.0  # a worker that is gone that long does not come back: its job is replaced
SETTLE_S = 5.0  # after the first worker, for those that start at the same time
ASK_S = 20
N_LOG_LINES = 3
# Jobs that ended before any worker came, over a run: then something is wrong with them all.
MAX_STILLBORN = 20


class KeepJobs(Adaptive):  # type: ignore[misc]
    """Keeps the number of jobs constant; the place where dask-jobqueue lets one say how.

    Adaptive itself starts nothing anew for a job with several workers, since the cluster knows
    jobs by one name and workers by another, nor for a job that ended before its worker came.
    """

    def __init__(self, cluster: Any, **options: Any) -> None:
        super().__init__(cluster, **options)
        self._missing_since: dict[str | None, float] = {}  # by job id
        self._seen: set[str] = set()  # ids of jobs that had a worker
        self._n_stillborn = 0

    async def target(self) -> int:
        """The number of workers, always the same; jobs that are lost are forgotten first."""
        for name, job in list(self.cluster.workers.items()):
            if self._is_missing(name, job) and await self._is_over(job):
                self._missing_since.pop(job.job_id, None)
                # What was asked for and what is there differ now: Adaptive submits it again.
                self.cluster.workers.pop(name, None)
                await job.close()  # what is left of it, a process that hangs
        return int(self.minimum)

    def _is_missing(self, name: Any, job: Any) -> bool:
        """Whether none of a job's workers has been there for some seconds."""
        there = {str(info["name"]) for info in self.cluster.scheduler_info["workers"].values()}
        group = self.cluster.worker_spec.get(name, {}).get("group", [""])
        if any(f"{name}{suffix}" in there for suffix in group):
            self._seen.add(job.job_id)
            self._missing_since.pop(job.job_id, None)
            return False
        now = time.monotonic()
        return now - self._missing_since.setdefault(job.job_id, now) > LOST_AFTER_S

    async def _is_over(self, job: Any) -> bool:
        """Whether a job had its worker, or left the queue without; false while it waits there."""
        if job.job_id is None or job.job_id in self._seen:
            return True  # the queue refused it, or it had its worker
        if self._n_stillborn >= MAX_STILLBORN or job.config_name != "slurm":
            return False
        states = await asyncio.to_thread(queue_says, "slurm", [job.job_id])
        over = any(word in states for word in OVER)
        self._n_stillborn += over
        return over


def security_of(tls: TlsSection | None) -> Security | None:
    """TLS for scheduler, workers and client with the same certificate."""
    if tls is None:
        return None
    files = {name: Path(getattr(tls, name)).expanduser() for name in ("ca", "cert", "key")}
    for name, path in files.items():
        if not path.is_file():
            raise ConfigError(where=f"tls.{name}", why=f"{path}: no such file")
    ca, cert, key = (str(path.resolve()) for path in files.values())
    return Security(
        require_encryption=True, tls_ca_file=ca,
        tls_client_cert=cert, tls_client_key=key,
        tls_scheduler_cert=cert, tls_scheduler_key=key,
        tls_worker_cert=cert, tls_worker_key=key,
    )  # fmt: skip


def cluster_class(kind: str) -> Any:
    """The class of dask-jobqueue for a kind of queue. Raises ConfigError: not installed."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return getattr(import_module("dask_jobqueue"), CLUSTERS[kind])
    except ImportError:
        raise ConfigError(
            where=f"kind = {kind!r}", why="dask-jobqueue is not installed",
            do="pip install 'nightloom[hpc]', or use a job array: cluster/slurm_array.sbatch",
        ) from None  # fmt: skip
    finally:
        # Its import makes SIGINT end the process at once (dask_jobqueue.runner, 0.9.0).
        signal.signal(signal.SIGINT, before)


def job_options(settings: JobSettings, logs: Path) -> dict[str, Any]:
    """Arguments of dask-jobqueue for one job."""
    options: dict[str, Any] = {
        "queue": settings.queue,
        "cores": settings.cores,
        "processes": settings.cores,
        "memory": f"{settings.memory_gb}GB",
        "walltime": _walltime(settings),
        "python": settings.python,
        "interface": settings.interface,
        "local_directory": settings.scratch,
        "log_directory": str(logs),
        "job_name": JOB_NAME,
        "job_script_prologue": [*exports(), *settings.prologue],
        "job_extra_directives": list(settings.directives),
        "job_directives_skip": list(settings.directives_skip),
        "death_timeout": settings.death_timeout_s,
        # No --lifetime-restart: that starts a new worker in the old job, up to the walltime.
        "worker_extra_args": [
            "--lifetime", f"{settings.worker_lifetime_s:g}s",
            "--lifetime-stagger", f"{settings.stagger_s:g}s",
            "--no-dashboard",
        ],
    }  # fmt: skip
    options["account" if settings.kind in ("slurm", "pbs") else "project"] = settings.account
    if settings.kind in ("pbs", "sge"):
        options["resource_spec"] = settings.resource_spec
    return options


def _walltime(settings: JobSettings) -> str:
    """As each queue reads it; only Slurm knows days."""
    minutes, seconds = divmod(settings.walltime_s, 60)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return text if settings.kind == "lsf" else f"{text}:{seconds:02d}"


def job_script(settings: JobSettings, logs: Path, *, scheduler: str) -> str:
    """The script that is submitted for one job."""
    job_class = cluster_class(settings.kind).job_cls
    job = job_class(scheduler, name=JOB_NAME, **job_options(settings, logs))
    return str(job.job_script())


def start_jobs(settings: JobSettings, logs: Path, *, where: str) -> Any:
    """A scheduler in this process, and the jobs submitted; their workers come when they come.

    Raises ConfigError: TLS files, dask-jobqueue or the interface are not there. RunError: the
    queue refuses the jobs; says in which words.
    """
    make = cluster_class(settings.kind)
    security = security_of(settings.tls)
    scheduler = {"dashboard_address": settings.dashboard}
    if settings.scheduler_interface or settings.interface:
        scheduler["interface"] = settings.scheduler_interface or settings.interface or ""
    # Sooner than ours, or dask would take the job that replaces a lost one for the lost one.
    dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LOST_AFTER_S - 2}s"})
    try:
        cluster = make(
            n_workers=0, security=security, scheduler_options=scheduler,
            **job_options(settings, logs),
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(where=where, why=str(error), do="mend the cluster file") from error
    # Not by scale(), which submits in the background, where a refusal is only logged.
    for _ in range(settings.jobs):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        cluster.sync(_submitted, cluster)
    except (RuntimeError, OSError) as error:
        close_jobs(cluster)
        raise RunError(
            where=where, why=f"{make.job_cls.submit_command} refuses the job: {_words(error)}",
            do="mend queue, account or memory_gb there",
        ) from None  # fmt: skip
    return cluster


def close_jobs(cluster: Any) -> None:
    """Cancel the jobs and end the scheduler."""
    for job in list(cluster._created):
        # A cluster can't be closed while one of its jobs is not said to be; dask-jobqueue never
        # says so, which goes unnoticed only where Python has collected the job by then.
        job.status = Status.closing
    cluster.close()


async def _submitted(cluster: Any) -> None:
    await cluster


def keep(cluster: Any, settings: JobSettings) -> None:
    """From now on a job that is lost or ends is replaced."""
    cluster.adapt(
        Adaptive=KeepJobs, minimum_jobs=settings.jobs, maximum_jobs=settings.jobs,
        interval=f"{LOOK_EVERY_S}s", wait_count=2,
    )  # fmt: skip


def wait_for_workers(client: Client, cluster: Any, settings: JobSettings, logs: Path) -> None:
    """Wait for the first worker, and a moment for those that start with it.

    Raises RunError: none came in `start_timeout_s`; with what the queue and the jobs said.
    """
    wanted = settings.jobs * settings.cores
    try:
        client.wait_for_workers(1, timeout=settings.start_timeout_s)
    except TimeoutError:
        ids = [job.job_id for job in cluster.workers.values() if job.job_id]
        raise RunError(
            where=f"{settings.kind} jobs {', '.join(ids)}",
            why=f"no worker came in {settings.start_timeout_s:g} s; the queue says: "
            + (queue_says(settings.kind, ids) or "nothing")
            + log_says(logs, ids),
            do="see the queue and memory_gb, or raise start_timeout_s",
        ) from None
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        if len(client.scheduler_info(n_workers=-1)["workers"]) >= wanted:
            break
        time.sleep(0.2)


def queue_says(kind: str, ids: list[str]) -> str:
    """The state of jobs in the queue's own words, in one line."""
    joined = [",".join(ids)] if kind in ("slurm", "sge") else ids
    try:
        answer = subprocess.run(
            [*ASK_QUEUE[kind], *joined], capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = (answer.stdout + answer.stderr).splitlines()
    return "; ".join(line.strip() for line in lines if line.strip())


def log_says(logs: Path, ids: list[str]) -> str:
    """The last lines of the newest log of some jobs; "" where they wrote none."""
    files = [path for job in ids for path in logs.glob(f"*{job}*") if path.stat().st_size]
    if not files:
        return ""
    newest = max(files, key=lambda path: path.stat().st_mtime)
    lines = newest.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"; {newest} ends: " + " / ".join(lines[-N_LOG_LINES:])


def _words(error: Exception) -> str:
    """What a command wrote to its standard error, out of dask-jobqueue's report of it."""
    text = str(error)
    return " ".join(text.rpartition("stderr:\n")[2].split()) or text
