"""The page of all nights on Dask's dashboard server: /nightloom, /nightloom.json, /metrics.

The state lies on the scheduler, so a reloaded browser sees it at once. What distributed does not
promise (the routes of its web server, its table of handlers, who processes what) is used in this
module only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client, performance_report
from distributed.diagnostics.plugin import SchedulerPlugin
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from tornado.web import Application, RequestHandler

NAME = "nightloom"
HANDLER = "nightloom_board"
NOTHING = b"{}"
Metric = CounterMetricFamily | GaugeMetricFamily


class BoardPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Keeps the state of the run on the scheduler and serves it there; ends with the scheduler."""

    name = NAME

    def __init__(self, page: str, run: str) -> None:
        self.page = page
        self.run = run
        self.board = NOTHING
        self._scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        """Add the routes and the metrics, or take the place of an earlier run's."""
        self._scheduler = scheduler
        before = scheduler.plugins.get(NAME)
        if before is None:
            arguments = {"scheduler": scheduler}
            # Behind whatever prefix the dashboard's pages lie.
            routes = [
                (r"(?:/.+)?/nightloom", _Page, arguments),
                (r"(?:/.+)?/nightloom\.json", _State, arguments),
            ]
            scheduler.http_application.add_application(Application(routes))
        else:
            REGISTRY.unregister(before)
        scheduler.handlers[HANDLER] = self.update
        REGISTRY.register(self)

    async def update(self, run: str, board: bytes) -> None:
        """Take the state of a run, as JSON; of two at once, that of the last to come."""
        if run == self.run:
            self.board = board

    async def close(self) -> None:
        """The registry of metrics outlives a scheduler inside a process."""
        REGISTRY.unregister(self)

    def state(self) -> bytes:
        """The run's state with what each worker does now, as JSON."""
        workers = b'{"workers": ' + json.dumps(_workers(self._scheduler)).encode()
        rest = self.board[1:]
        return workers + (b"}" if rest == b"}" else b", " + rest)

    def describe(self) -> list[Metric]:
        """Nothing: the names are those of `collect`, which needs no scheduler then."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The run in numbers, for Prometheus."""
        yield from metrics_of(json.loads(self.board))


class _Page(RequestHandler):
    def initialize(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def get(self) -> None:
        self.write(self.scheduler.plugins[NAME].page)


class _State(RequestHandler):
    def initialize(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.write(self.scheduler.plugins[NAME].state())


def install(client: Client, *, run: str, page: str) -> None:
    """Put the page on the scheduler's web server, in the place of one that is there.

    Raises what the scheduler raises: it may lack nightloom, or its dashboard.
    """
    client.register_plugin(BoardPlugin(page, run), name=NAME)


def post(client: Client, *, run: str, board: bytes) -> None:
    """Hand the state of the run to the page."""
    client.sync(getattr(client.scheduler, HANDLER), run=run, board=board)


def page_of(dashboard: str) -> str:
    """Address of our page, from that of the dashboard."""
    return dashboard.rsplit("/", 1)[0] + "/nightloom" if dashboard else ""


@contextmanager
def profiled(client: Client, file: Path) -> Iterator[None]:
    """Dask's performance report of the block, as HTML."""
    with client.as_current(), performance_report(filename=str(file)):
        yield


def metrics_of(board: Mapping[str, Any]) -> Iterator[Metric]:
    """The metrics of a run's state; none before there is one."""
    if "products" not in board:
        return
    products = GaugeMetricFamily(
        "nightloom_products", "Products by kind and state", labels=["kind", "state"]
    )
    for kind, states in board["products"].items():
        for state, n in states.items():
            products.add_metric([kind, state], n)
    yield products
    frames = GaugeMetricFamily("nightloom_frames", "Frames by state", labels=["state"])
    for state, n in board["frames"].items():
        frames.add_metric([state], n)
    yield frames
    nights = GaugeMetricFamily("nightloom_nights", "Nights by state", labels=["state"])
    done, total = board["nights"]["done"], board["nights"]["total"]
    nights.add_metric(["done"], done)
    nights.add_metric(["pending"], total - done)
    yield nights
    yield CounterMetricFamily(
        "nightloom_run_frames", "Science frames that this run is done with",
        value=board["run_frames"]["done"],
    )  # fmt: skip
    yield GaugeMetricFamily(
        "nightloom_frames_per_second", "Science frames a second, over two minutes",
        value=board["frames_per_s"] or 0.0,
    )  # fmt: skip
    yield GaugeMetricFamily(
        "nightloom_products_running", "Products that are being made", value=len(board["running"])
    )
    left = board["left_s"]
    yield GaugeMetricFamily(
        "nightloom_left_seconds", "Time until the frames are measured, NaN where unknown",
        value=float("nan") if left is None else left,
    )  # fmt: skip


def _workers(scheduler: Any) -> list[dict[str, Any]]:
    """Each worker with its memory and the products that it works on."""
    return [
        {
            "worker": str(worker.name),
            "host": worker.host,
            "memory_bytes": worker.memory.process,
            "running": sorted({_product(task) for task in worker.executing}),
        }
        for worker in scheduler.workers.values()
    ]


def _product(task: Any) -> str:
    """The product that a task belongs to, as its key says it: kind-id/product."""
    kind, _, product = str(task.key[0] if isinstance(task.key, tuple) else task.key).partition("/")
    return product or kind.split("-")[0]
