"""Cluster files (`cluster/*.toml`) read into frozen models; unknown keys are refused by name."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from nightloom.config import explained, read_toml
from nightloom.errors import ConfigError

ANY_FREE_PORT = ":0"
_WALLTIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>[0-5]?\d)(?::(?P<s>[0-5]?\d))?")


class Section(BaseModel):
    """A table of the file: frozen, no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TlsSection(Section):
    """[tls]: files in PEM that every node can read; who has them may talk to the scheduler."""

    ca: str
    cert: str
    key: str


class LocalSettings(Section):
    """cluster/local.toml: workers on this machine."""

    kind: Literal["local"] = "local"
    workers: int | None = Field(None, ge=1)  # one a core, if not given
    memory_gb: float | None = Field(None, gt=0)  # of each worker
    dashboard: str = "127.0.0.1:0"  # port 0: any that is free


class JoinSettings(Section):
    """cluster/join.toml: a scheduler that runs already; `address` or `scheduler_file`."""

    kind: Literal["join"] = "join"
    address: str | None = None
    scheduler_file: str | None = None
    start_timeout_s: float = Field(300, gt=0)
    tls: TlsSection | None = None

    @model_validator(mode="after")
    def _one_scheduler(self) -> JoinSettings:
        if (self.address is None) == (self.scheduler_file is None):
            raise ValueError("needs either address or scheduler_file")
        if self.tls is not None and self.address and not self.address.startswith("tls://"):
            raise ValueError(f"address is {self.address}: with [tls] it starts with tls://")
        return self


def _is_walltime(text: str) -> str:
    if _seconds(text) is None:
        raise ValueError("is no walltime such as 04:00:00 or 1-12:00:00")
    return text


class JobSettings(Section):
    """Workers as jobs of a queue: what cluster/{slurm,pbs,lsf,sge}.toml share."""

    kind: Literal["slurm", "pbs", "lsf", "sge"]
    jobs: int = Field(ge=1)  # kept at this number until the run ends
    cores: int = Field(1, ge=1)  # of a job; one worker process each
    memory_gb: float = Field(gt=0)  # of a job, all its workers together
    walltime: Annotated[str, AfterValidator(_is_walltime)]
    queue: str | None = None
    account: str | None = None
    resource_spec: str | None = None  # PBS and SGE: what follows -l
    directives: tuple[str, ...] = ()  # further lines of the job's header, without #SBATCH
    directives_skip: tuple[str, ...] = ()  # header lines that hold one of these are left out
    prologue: tuple[str, ...] = ()  # shell lines before the worker starts
    python: str | None = None  # on the nodes; this one, if not given
    interface: str | None = None  # network between nodes
    scheduler_interface: str | None = None  # of this node, where it has another name here
    scratch: str | None = None  # local disk of a node; $TMPDIR is expanded there
    dashboard: str = ANY_FREE_PORT
    start_timeout_s: float = Field(600, gt=0)  # until the first worker must be there
    death_timeout_s: float = Field(60, gt=0)  # a worker without scheduler ends after this
    task_s: float = Field(60, gt=0)  # no task takes longer
    margin_s: float = Field(120, ge=0)  # workers end that long before the walltime
    stagger_s: float = Field(60, ge=0)  # spread of their ends, so that not all go at once
    lifetime_s: float | None = Field(None, gt=0)  # walltime - margin - stagger, if not given
    tls: TlsSection | None = None

    @property
    def walltime_s(self) -> int:
        return _seconds(self.walltime) or 0

    @property
    def worker_lifetime_s(self) -> float:
        """Mean age at which a worker hands over and ends; single ones within the stagger."""
        if self.lifetime_s is not None:
            return self.lifetime_s
        return self.walltime_s - self.margin_s - self.stagger_s

    @model_validator(mode="after")
    def _some_task_fits(self) -> JobSettings:
        shortest_s = self.worker_lifetime_s - self.stagger_s
        longest_s = self.worker_lifetime_s + self.stagger_s
        if longest_s > self.walltime_s:
            raise ValueError(
                f"workers may live {longest_s:g} s (lifetime_s + stagger_s), longer than the "
                f"walltime of {self.walltime_s} s"
            )
        if shortest_s < self.task_s:
            raise ValueError(
                f"walltime is too short: a worker may end after {max(shortest_s, 0):g} s "
                f"(walltime {self.walltime_s} s, margin_s {self.margin_s:g}, stagger_s "
                f"{self.stagger_s:g} twice), before a task of task_s = {self.task_s:g} s is done"
            )
        return self


ClusterSettings = LocalSettings | JoinSettings | JobSettings
_MODELS: dict[str, type[LocalSettings] | type[JoinSettings] | type[JobSettings]] = {
    "local": LocalSettings,
    "join": JoinSettings,
    "slurm": JobSettings,
    "pbs": JobSettings,
    "lsf": JobSettings,
    "sge": JobSettings,
}


def cluster_settings(cluster: str | None) -> ClusterSettings:
    """What `--cluster` names: a TOML file, a scheduler's address, or its file; else this machine.

    Raises ConfigError: no such file, an unknown key, a value out of range.
    """
    if cluster is None:
        return LocalSettings()
    if cluster.endswith(".toml"):
        return _load(Path(cluster))
    if cluster.endswith(".json"):
        return JoinSettings(scheduler_file=cluster)
    if ":" in cluster:
        return JoinSettings(address=cluster)
    raise ConfigError(
        where=f"--cluster {cluster}",
        why="is no cluster",
        do="name a file such as cluster/slurm.toml, an address tcp://host:8786, "
        "a scheduler.json, or serial",
    )


def _load(path: Path) -> ClusterSettings:
    data = read_toml(path, do="the folder cluster/ holds some to start from")
    kind = data.get("kind", "local")
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        near = difflib.get_close_matches(str(kind), _MODELS, n=1, cutoff=0.5)
        do = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(_MODELS)}"
        raise ConfigError(where=f"{path}: kind", why=f"{kind!r} is no kind of cluster", do=do)

    def known(section: list[str]) -> list[str]:
        return list((TlsSection if section == ["tls"] else model).model_fields)

    try:
        return model(**data)
    except ValidationError as error:
        raise explained(path, error, known) from None


def _seconds(walltime: str) -> int | None:
    """Seconds of [days-]hours:minutes[:seconds]."""
    match = _WALLTIME.fullmatch(walltime.strip())
    if match is None:
        return None
    d, h, m, s = (int(match[name] or 0) for name in "dhms")
    return ((d * 24 + h) * 60 + m) * 60 + s
