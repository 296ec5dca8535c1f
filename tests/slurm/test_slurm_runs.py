"""Archives on a real Slurm: the same bytes as without, whatever happens to the jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archives import digest, run, run_on
from nightloom.engine.cluster import Engine
from nightloom.engine.recipe import Event, ItemsDone
from nightloom.errors import ExitCode, RunError
from nightloom.synth.archive import write_archive
from nightloom.synth.truth import SynthSpec
from slurm_nodes import says

pytestmark = pytest.mark.slurm
REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = SynthSpec(n_nights=2, frames_per_night=12, nx=200, ny=160, n_stars=40,
                 n_bias=3, n_dark=3, n_flat=3)  # fmt: skip
REPLACED_S = 90
CLUSTER = """\
kind = "slurm"
queue = "main"
jobs = 2
memory_gb = 0.9
walltime = "00:05:00"
interface = "lo"
task_s = 1
margin_s = 10
stagger_s = 1
start_timeout_s = 90
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's archive, reduced in this process."""
    return _reduced(tmp_path_factory.mktemp("demo"), SynthSpec())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one."""
    return _reduced(tmp_path_factory.mktemp("small"), SMALL)


def _reduced(folder: Path, spec: SynthSpec) -> Path:
    config = write_archive(folder, spec)
    assert run(config).exit_code == ExitCode.DONE
    return config


def copy_of(archive: Path, folder: Path) -> Path:
    """The same archive, nothing made yet."""
    shutil.copytree(archive.parent, folder, ignore=shutil.ignore_patterns("products"))
    return folder / archive.name


def cluster_file(folder: Path, **changes: object) -> str:
    """A cluster file for the Slurm of the tests, with other values for some keys."""
    known = dict(line.split(" = ", 1) for line in CLUSTER.splitlines())
    known |= {k: f'"{v}"' if isinstance(v, str) else str(v) for k, v in changes.items()}
    path = folder / "slurm.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in known.items()))
    return str(path)


def jobs(state: str) -> set[str]:
    return set(says("squeue", "-h", "-t", state, "-o", "%A").split())


class Killer:
    """Kills a running job as the first frames of a night are measured."""

    def __init__(self) -> None:
        self.killed: set[str] = set()

    def __call__(self, event: Event) -> None:
        if self.killed or not (isinstance(event, ItemsDone) and event.product.startswith("cube/")):
            return
        self.killed = {min(jobs("RUNNING"))}
        says("scancel", "--signal=KILL", *self.killed)


def test_jobs_make_the_same_bytes_and_a_killed_one_is_replaced(
    slurm: Path, archive: Path, tmp_path: Path
) -> None:
    copied = copy_of(archive, tmp_path / "archive")
    kill = Killer()
    with Engine(cluster_file(tmp_path), logs=tmp_path / "logs") as engine:
        outcome = run_on(engine, copied, listen=kill)
        assert kill.killed
        deadline = time.monotonic() + REPLACED_S
        while len(jobs("RUNNING") - kill.killed) < 2:
            assert time.monotonic() < deadline, says("squeue", "-t", "all")
            time.sleep(0.5)
    assert outcome.exit_code == ExitCode.DONE
    assert digest(copied) == digest(archive)
    assert not list(copied.parent.rglob(".work-*"))
    assert not jobs("RUNNING,PENDING")


class Patience:
    """Holds the driver up as the first frames of a night are measured, until all jobs ended."""

    def __init__(self) -> None:
        self.first: set[str] = set()

    def __call__(self, event: Event) -> None:
        if self.first or not (isinstance(event, ItemsDone) and event.product.startswith("cube/")):
            return
        self.first = jobs("RUNNING")
        deadline = time.monotonic() + REPLACED_S
        while self.first & jobs("RUNNING,COMPLETING"):
            assert time.monotonic() < deadline, says("squeue", "-t", "all")
            time.sleep(0.5)


def test_jobs_that_end_by_their_lifetime_are_replaced(
    slurm: Path, small: Path, tmp_path: Path
) -> None:
    copied = copy_of(small, tmp_path / "archive")
    file = cluster_file(tmp_path, lifetime_s=25)
    wait = Patience()
    with Engine(file, logs=tmp_path / "logs") as engine:
        outcome = run_on(engine, copied, listen=wait)
    assert outcome.exit_code == ExitCode.DONE
    assert digest(copied) == digest(small)
    assert wait.first
    for job in wait.first:
        assert "worker-lifetime-reached" in (tmp_path / "logs" / f"nightloom-{job}.err").read_text()


@contextmanager
def job_array(folder: Path) -> Iterator[str]:
    """The scheduler file of cluster/slurm_array.sbatch while the array runs."""
    (folder / "logs").mkdir()
    tools = str(Path(sys.executable).parent)
    env = os.environ | {
        "NIGHTLOOM_INTERFACE": "lo", "NIGHTLOOM_LIFETIME": "60s", "NIGHTLOOM_STAGGER": "1s",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }  # fmt: skip
    script = str(REPOSITORY / "cluster" / "slurm_array.sbatch")
    command = ["sbatch", "--parsable", "--array=0-9%3", "--mem=900M", "--time=5", script]
    submitted = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, check=True, timeout=30
    )
    array = submitted.stdout.strip()
    file = folder / "logs" / f"scheduler-{array}.json"
    try:
        deadline = time.monotonic() + 60
        while not (file.exists() and file.stat().st_size):
            assert time.monotonic() < deadline, says("squeue", "-t", "all")
            time.sleep(0.2)
        yield str(file)
    finally:
        says("scancel", array)


def test_a_job_array_makes_the_same_bytes(slurm: Path, archive: Path, tmp_path: Path) -> None:
    copied = copy_of(archive, tmp_path / "archive")
    with job_array(tmp_path) as scheduler, Engine(scheduler) as engine:
        outcome = run_on(engine, copied, listen=(kill := ArrayKiller()))
    assert kill.killed
    assert outcome.exit_code == ExitCode.DONE
    assert digest(copied) == digest(archive)


class ArrayKiller(Killer):
    """The same for a worker of an array, whose first task is the scheduler."""

    def __call__(self, event: Event) -> None:
        if self.killed or not (isinstance(event, ItemsDone) and event.product.startswith("cube/")):
            return
        self.killed = {
            one for one in says("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()
            if not one.endswith("_0")
        }  # fmt: skip
        self.killed = {min(self.killed)}
        says("scancel", "--signal=KILL", *self.killed)


def test_a_queue_that_does_not_exist(slurm: Path, tmp_path: Path) -> None:
    file = cluster_file(tmp_path, queue="nowhere")
    with (
        Engine(file, logs=tmp_path / "logs") as engine,
        pytest.raises(RunError, match=r"sbatch refuses the job: .*invalid partition"),
    ):
        engine.connected()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queue": "closed"}, r"PENDING PartitionDown"),
        ({"prologue": ["echo no module here >&2", "exit 1"]}, r"FAILED .* no module here"),
    ],
)
def test_workers_that_never_start(
    slurm: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    file = cluster_file(tmp_path, start_timeout_s=4, **changes)
    started = time.monotonic()
    with (
        pytest.raises(RunError, match=words) as refused,
        Engine(file, logs=tmp_path / "logs") as engine,
    ):
        engine.connected()
    assert time.monotonic() - started < 60  # the timeout and what a loaded machine needs
    assert "no worker came in 4 s" in str(refused.value)
    assert refused.value.exit_code == ExitCode.RUN_FAILED
    assert not jobs("RUNNING,PENDING")
