"""Where recipes run: this process, workers on this machine or in a queue, or a joined cluster."""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.comm import get_address_host_port

from nightloom.engine import dashboard, jobs
from nightloom.engine.futures import map_on
from nightloom.engine.recipe import Event, Recipe
from nightloom.engine.run import make_on
from nightloom.engine.serial import make_serial, map_serial
from nightloom.engine.settings import (
    JobSettings,
    JoinSettings,
    LocalSettings,
    cluster_settings,
)
from nightloom.engine.task import TaskResult
from nightloom.engine.workers import CONNECT_S, ONE_THREAD, QUIET, check_versions
from nightloom.errors import RunError
from nightloom.schema.trace import TaskKind

SERIAL = "serial"
LOCAL_STARTS = 3
LOCAL_PATIENCE_S = 300.0  # with no worker at all
# A worker that was lost has so long to start again. By default its nanny is ended after 15 s, which
# a loaded machine needs to import all: then nobody starts it any more.
LOCAL_RESTART = {"distributed.deploy.lost-worker-timeout": "300s"}


class Engine:
    """Runs recipes; a cluster starts when the first work arrives, and ends with `close`.

    cluster: a TOML file, an address, a scheduler file, "serial", or None for this machine.
    announce: called with the dashboard's address, once, when there is one. profile: file for
    Dask's performance report, written at the end. logs: folder where jobs write theirs.
    """

    def __init__(
        self,
        cluster: str | None = None,
        *,
        announce: Callable[[str], None] | None = None,
        profile: Path | None = None,
        logs: Path = Path("logs"),
    ) -> None:
        self.where = cluster
        self._announce = announce
        self._profile = profile
        self._profiling = ExitStack()
        self._logs = logs.resolve()
        self._client: Client | None = None
        self._cluster: Any = None  # where this engine started one
        self._checked: set[str] = set()  # workers whose versions are ours
        self._settings = None if cluster == SERIAL else cluster_settings(cluster)

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
        if self.where == SERIAL:
            yield from make_serial(root, coming)
        else:
            yield from make_on(self.connected(), root, coming, patience_s=self._patience_s)

    def map(
        self, function: Callable[[Any], Any], chunks: Sequence[Any], *, kind: TaskKind,
        product: str = "",
    ) -> Iterator[TaskResult]:  # fmt: skip
        """A function over chunks; results in the order of the chunks."""
        if self.where == SERIAL or len(chunks) < 2:
            yield from map_serial(function, chunks, kind=kind, product=product)
        else:
            yield from map_on(
                self.connected(), function, chunks, kind=kind, product=product,
                patience_s=self._patience_s,
            )  # fmt: skip

    @property
    def _patience_s(self) -> float:
        return float(getattr(self._settings, "start_timeout_s", LOCAL_PATIENCE_S))

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
            if isinstance(self._settings, JobSettings) and self._cluster is not None:
                jobs.close_jobs(self._cluster)
            elif self._cluster is not None:
                self._cluster.close()
            self._client = self._cluster = None

    def connected(self) -> Client:
        """The client, with at least one worker, all of them with our versions.

        Raises RunError: no scheduler, no worker in time, other versions.
        """
        if self._client is None:
            dask.config.set(QUIET)
            os.environ.update(ONE_THREAD)
            self._client = self._start()
            if self._announce is not None:
                self._announce(self._client.dashboard_link)
            self._await_workers(self._client)
            if self._profile is not None:
                self._profiling.enter_context(dashboard.profiled(self._client, self._profile))
        self._checked = check_versions(self._client, known=self._checked)
        return self._client

    def _start(self) -> Client:
        match self._settings:
            case JobSettings() as settings:
                self._cluster = jobs.start_jobs(settings, self._logs, where=str(self.where))
                return Client(self._cluster)
            case JoinSettings() as settings:
                return _join(settings)
            case LocalSettings() as settings:
                dask.config.set(LOCAL_RESTART)
                self._cluster = _local(settings)
                return Client(self._cluster)
            case _:
                raise RunError(where=SERIAL, why="has no cluster")

    def _await_workers(self, client: Client) -> None:
        match self._settings:
            case JobSettings() as settings:
                jobs.wait_for_workers(client, self._cluster, settings, self._logs)
                jobs.keep(self._cluster, settings)
            case JoinSettings() as settings:
                try:
                    client.wait_for_workers(1, timeout=settings.start_timeout_s)
                except TimeoutError:
                    raise RunError(
                        where=str(self.where),
                        why=f"no worker came in {settings.start_timeout_s:g} s",
                        do="start workers there",
                    ) from None
            case _:
                pass


def _local(settings: LocalSettings) -> LocalCluster:
    """Workers on this machine; tried again where one died before it was up.

    Raises RunError: they do not come up.
    """
    memory = f"{settings.memory_gb}GB" if settings.memory_gb else "auto"
    trial = 0
    while True:
        trial += 1
        try:
            return LocalCluster(
                n_workers=settings.workers or os.cpu_count(),
                threads_per_worker=1,
                processes=True,
                memory_limit=memory,
                dashboard_address=settings.dashboard,
            )
        except RuntimeError as error:
            if trial == LOCAL_STARTS:
                why = f"workers do not start: {error.__cause__ or error}"
                raise RunError(where="this machine", why=why, do="is there memory?") from error


def _join(settings: JoinSettings) -> Client:
    """A client of a scheduler that runs. Raises RunError: none answers."""
    where = settings.address or str(settings.scheduler_file)
    security = jobs.security_of(settings.tls)
    try:
        address = settings.address or _address_in(Path(where))
        # Refused or unknown at once, where dask would try for as long as it may wait.
        socket.create_connection(get_address_host_port(address), timeout=CONNECT_S).close()
        return Client(address, timeout=CONNECT_S, security=security)
    except (OSError, ValueError, TypeError, RuntimeError, TimeoutError) as error:
        raise RunError(
            where=where, why=f"no scheduler answers: {error}", do="is it running there?"
        ) from None


def _address_in(scheduler_file: Path) -> str:
    try:
        return str(json.loads(scheduler_file.read_text(encoding="utf-8"))["address"])
    except FileNotFoundError:
        why = "no such file"
    except (ValueError, KeyError):
        why = "is no scheduler file"
    raise RunError(where=str(scheduler_file), why=why, do="start the scheduler that writes it")
