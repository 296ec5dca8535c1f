"""Cluster files: the ones that ship, and what is wrong with others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nightloom.engine.jobs import job_script, security_of
from nightloom.engine.settings import (
    JobSettings,
    JoinSettings,
    LocalSettings,
    TlsSection,
    cluster_settings,
)
from nightloom.engine.workers import environment, exports
from nightloom.errors import ConfigError

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
JOBS = """\
kind = "slurm"
jobs = 2
memory_gb = 4
walltime = "01:00:00"
"""
HEADERS = {
    "slurm": ["#SBATCH -p normal", "#SBATCH --cpus-per-task=4", "#SBATCH -t 04:00:00"],
    "pbs": ["#PBS -q workq", "#PBS -l select=1:ncpus=4:", "#PBS -l walltime=04:00:00"],
    "lsf": ["#BSUB -q normal", "#BSUB -n 4", "#BSUB -W 04:00"],
    "sge": ["#$ -q all.q", "#$ -l h_vmem=2G", "#$ -l h_rt=04:00:00", "#$ -pe smp 4"],
}


def loaded(folder: Path, text: str) -> object:
    path = folder / "cluster.toml"
    path.write_text(text)
    return cluster_settings(str(path))


@pytest.mark.parametrize("kind", sorted(HEADERS))
def test_shipped_files_make_job_scripts(kind: str, tmp_path: Path) -> None:
    settings = cluster_settings(str(CLUSTER / f"{kind}.toml"))
    assert isinstance(settings, JobSettings)
    script = job_script(settings, tmp_path, scheduler="tcp://10.0.0.1:8786")
    for line in HEADERS[kind]:
        assert line in script
    for line in exports():
        assert line in script
    assert "--nworkers 4" in script
    assert "--nthreads 1" in script
    # Four hours without margin and stagger, and never restarted in the old job.
    assert "--lifetime 14220s --lifetime-stagger 60s" in script
    assert "--lifetime-restart" not in script
    # The shell of the node sees one argument even where TMPDIR is not set.
    assert "--local-directory ${TMPDIR:-/tmp} " in script


def test_dask_jobqueue_does_not_take_the_interrupt() -> None:
    """Its import sets a handler of its own, with which Ctrl-C would not end as 130."""
    code = (
        "import signal; from nightloom.engine.jobs import cluster_class; "
        "before = signal.getsignal(signal.SIGINT); cluster_class('slurm'); "
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_shipped_files() -> None:
    assert isinstance(cluster_settings(str(CLUSTER / "local.toml")), LocalSettings)
    joined = cluster_settings(str(CLUSTER / "join.toml"))
    assert isinstance(joined, JoinSettings)
    assert joined.tls is not None


def test_the_job_array_gives_its_workers_what_ours_get() -> None:
    """Run by a shell with the commands of dask left out."""
    script = (CLUSTER / "slurm_array.sbatch").read_text().split("if [")[0]
    shown = subprocess.run(
        ["/bin/bash", "-uc", script + "env -0"], env={"SLURM_ARRAY_JOB_ID": "7"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = dict(one.split("=", 1) for one in shown.split("\0") if one)
    assert {key: found.get(key) for key in environment()} == environment()


def test_the_environment_configures_dask_as_the_engine_does() -> None:
    code = (
        "import dask, distributed; from nightloom.engine.workers import QUIET; "
        "there = {k: dask.config.get(k) for k in QUIET}; "
        "pre = there['distributed.nanny.pre-spawn-environ']; "
        "assert QUIET['distributed.nanny.pre-spawn-environ'].items() <= pre.items(), pre; "
        "there.pop('distributed.nanny.pre-spawn-environ'); "
        "assert there.items() <= QUIET.items(), there"
    )
    lines = "\n".join([*exports(), f'exec {sys.executable} -c "$1"'])
    subprocess.run(["/bin/bash", "-c", lines, "bash", code], check=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (JOBS + 'queeu = "long"\n', r"queeu: unknown key \(did you mean 'queue'\?\)"),
        (JOBS.replace("slurm", "slurn"), r"kind: 'slurn' is no kind of cluster \(did you mean 'sl"),
        (JOBS.replace("memory_gb = 4\n", ""), r"memory_gb: is missing"),
        (JOBS.replace("01:00:00", "an hour"), r"walltime: 'an hour': is no walltime such as 04"),
        (JOBS.replace("01:00", "00:02"), r"walltime is too short: a worker may end after 0 s"),
        (JOBS.replace("01:00", "00:05") + "task_s = 90\n", r"before a task of task_s = 90 s is d"),
        (JOBS + "lifetime_s = 3599\n", r"longer than the walltime of 3600 s"),
        (JOBS + '[tls]\nca = "a"\ncert = "b"\nkeys = "c"\n', r"tls.key: is missing"),
        ('kind = "join"\n', r"needs either address or scheduler_file"),
        ('kind = "join"\naddress = "tcp://h:1"\ntls = {ca = "a", cert = "b", key = "c"}\n',
         r"starts with tls://"),
        ("kind = [", r"not valid TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_cluster_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, text)


def test_what_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slrum.toml: no such file \(the folder cluster/"):
        cluster_settings(str(tmp_path / "slrum.toml"))
    with pytest.raises(ConfigError, match="--cluster slurm: is no cluster"):
        cluster_settings("slurm")
    with pytest.raises(ConfigError, match=re.escape(f"tls.ca: {tmp_path}/no.pem: no such file")):
        security_of(TlsSection(ca=f"{tmp_path}/no.pem", cert="x", key="x"))


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("00:30", 1800), ("04:00:00", 14400), ("100:00:00", 360000), ("1-12:00:00", 129600)],
)
def test_walltimes(tmp_path: Path, walltime: str, seconds: int) -> None:
    settings = loaded(tmp_path, JOBS.replace("01:00:00", walltime))
    assert isinstance(settings, JobSettings)
    assert settings.walltime_s == seconds
