"""Where recipes run: this process, workers on this machine, or a cluster that is joined."""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import dask
from distributed import Client, LocalCluster
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightloom.engine import dashboard
from nightloom.engine.recipe import Event, Recipe
from nightloom.engine.run import make_on, map_on
from nightloom.engine.serial import make_serial, map_serial
from nightloom.engine.task import TaskResult
from nightloom.errors import ConfigError, RunError
from nightloom.schema.trace import TaskKind

SERIAL = "serial"
CONNECT_S = 30
# One thread each for BLAS and numba: the parallel unit is the frame.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # Frames are of one size: what one gives back, the next takes, without asking the system.
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
}
QUIET = {
    "distributed.worker.profile.interval": "10s",
    "distributed.worker.profile.cycle": "100s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.scheduler.allowed-failures": 1,
    "distributed.worker.multiprocessing-method": "spawn",
    # A worker that pauses on memory which no task holds stays paused for ever (distributed #5999).
    # Rows are small, so nothing is worth spilling either: at 95 % the nanny starts it anew.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,
    "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
}


class LocalSettings(BaseModel):
    """cluster/local.toml: workers on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local"] = "local"
    workers: int | None = Field(None, ge=1)  # one a core, if not given
    memory_gb: float | None = Field(None, gt=0)  # of each worker
    dashboard: str = "127.0.0.1:0"  # port 0: any that is free


class Engine:
    """Runs recipes; a cluster starts when the first work arrives, and ends with `close`.

    announce: called with the dashboard's address, once, when there is one. profile: file for
    Dask's performance report, written at the end.
    """

    def __init__(
        self,
        cluster: str | None = None,
        *,
        announce: Callable[[str], None] | None = None,
        profile: Path | None = None,
    ) -> None:
        self._where = cluster
        self._announce = announce
        self._profile = profile
        self._profiling = ExitStack()
        self._client: Client | None = None
        self._local: LocalCluster | None = None
        self._settings = _local_settings(cluster)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make(self, root: Path, recipes: Iterable[Recipe]) -> Generator[Event, None, None]:
        """Make products; events as they happen. Recipes are asked for as there is room."""
        coming = iter(recipes)
        first = next(coming, None)
        if first is None:
            return
        coming = itertools.chain([first], coming)
        if self._where == SERIAL:
            yield from make_serial(root, coming)
        else:
            yield from make_on(self._connected(), root, coming)

    def map(
        self, function: Callable[[Any], Any], chunks: Sequence[Any], *, kind: TaskKind,
        product: str = "",
    ) -> Iterator[TaskResult]:  # fmt: skip
        """A function over chunks; results in the order of the chunks."""
        if self._where == SERIAL or len(chunks) < 2:
            yield from map_serial(function, chunks, kind=kind, product=product)
        else:
            yield from map_on(self._connected(), function, chunks, kind=kind, product=product)

    @property
    def dashboard(self) -> str:
        """Address of the dashboard; empty while there is no cluster."""
        return "" if self._client is None else str(self._client.dashboard_link)

    def show_page(self, *, run: str, page: str) -> None:
        """Put a page on the dashboard; the cluster must be there.

        Raises RunError: the scheduler can't take it.
        """
        try:
            dashboard.install(self._client, run=run, page=page)
        except Exception as error:
            # Whatever it raises: it may lack nightloom or its dashboard, or be of another version.
            why = f"shows no page of nightloom: {type(error).__name__}: {error}"
            raise RunError(where=self.dashboard, why=why) from error

    def post(self, *, run: str, board: bytes) -> None:
        """Hand the state of a run to the page that was put there; nothing without a cluster."""
        if self._client is not None:
            dashboard.post(self._client, run=run, board=board)

    def close(self) -> None:
        """End the cluster, if this engine started one, or leave the one it joined."""
        try:
            self._profiling.close()
        finally:
            if self._client is not None:
                self._client.close()
            if self._local is not None:
                self._local.close()
            self._client = self._local = None

    def _connected(self) -> Client:
        if self._client is None:
            dask.config.set(QUIET)
            os.environ.update(ONE_THREAD)
            self._client = self._start() if self._settings is not None else self._join()
            if self._announce is not None:
                self._announce(self._client.dashboard_link)
            if self._profile is not None:
                self._profiling.enter_context(dashboard.profiled(self._client, self._profile))
        return self._client

    def _start(self) -> Client:
        settings = self._settings or LocalSettings()
        memory = f"{settings.memory_gb}GB" if settings.memory_gb else "auto"
        self._local = LocalCluster(
            n_workers=settings.workers or os.cpu_count(),
            threads_per_worker=1,
            processes=True,
            memory_limit=memory,
            dashboard_address=settings.dashboard,
        )
        return Client(self._local)

    def _join(self) -> Client:
        where = str(self._where)
        try:
            if where.endswith(".json"):
                return Client(scheduler_file=where, timeout=CONNECT_S)
            return Client(where, timeout=CONNECT_S)
        except (OSError, ValueError, TimeoutError) as error:
            raise RunError(
                where=where, why=f"no scheduler answers: {error}", do="is it running there?"
            ) from None


def _local_settings(cluster: str | None) -> LocalSettings | None:
    """Settings of a local cluster; None where another is joined or none is wanted."""
    if cluster is None:
        return LocalSettings()
    if not cluster.endswith(".toml"):
        return None
    try:
        data = tomllib.loads(Path(cluster).read_text(encoding="utf-8"))
        return LocalSettings(**data)
    except FileNotFoundError:
        raise ConfigError(where=cluster, why="no such file", do="see cluster/local.toml") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where=cluster, why=f"not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(LocalSettings.model_fields)
        raise ConfigError(
            where=f"{cluster}: {key}", why=first["msg"], do=f"known keys: {known}"
        ) from None
