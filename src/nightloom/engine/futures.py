"""What is common to all that is sent to a cluster: futures and their values, records, names.

Also a function over chunks, one task a chunk.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any

from dask.bag import Bag
from distributed import Client, Future, KilledWorker, Worker, get_worker, wait

from nightloom.engine import window as w
from nightloom.engine.task import Tag, TaskResult, run_task, tag_of_chunk, traced
from nightloom.errors import RunError
from nightloom.schema.trace import COLUMNS, TaskKind, TaskRecord

RETRIES = 2
MAP_TASKS_PER_WORKER = 4
COUNT_WORKERS_EVERY_S = 10.0


class Patience:
    """How long to wait for a cluster that has no worker, who are counted every so often."""

    def __init__(self, client: Client, most_s: float) -> None:
        self.most_s = most_s
        self.every_s = min(COUNT_WORKERS_EVERY_S, most_s)
        self._client = client
        self._counted = self._last_seen = time.monotonic()

    def count(self) -> int | None:
        """How many workers are there; None while that is not to be asked again.

        Raises RunError: the scheduler is gone, or there was no worker for too long.
        """
        now = time.monotonic()
        if now - self._counted < self.every_s:
            return None
        self._counted, n = now, n_workers_of(self._client)
        if n:
            self._last_seen = now
        elif now - self._last_seen > self.most_s:
            raise RunError(
                where="workers",
                why=f"all are gone, and none came back in {self.most_s:g} s",
                do="all done so far is kept; see what ended them, then run it again",
            )
        return n


@dataclass(frozen=True, slots=True)
class _Part:
    """Arguments of a part, as one object: dask would look through a tuple for tasks."""

    tag: Tag
    items: tuple[Any, ...]


def map_on(
    client: Client, function: Callable[[Any], Any], chunks: Iterable[Any], *, kind: TaskKind,
    product: str, patience_s: float,
) -> Iterator[TaskResult]:  # fmt: skip
    """A function over chunks, one task a chunk; results in the order of the chunks.

    Raises RunError: the scheduler is gone, or there was no worker for as long as patience_s.
    """
    patience = Patience(client, patience_s)
    n_ahead = max(w.MIN_TASKS, MAP_TASKS_PER_WORKER * n_workers_of(client))
    rest = iter(chunks)
    futures: deque[Future] = deque()
    name = f"{kind}-{new_id()}/{product}"
    for n_sent in itertools.count(0, n_ahead):
        batch = list(itertools.islice(rest, n_ahead))
        graph = {
            (f"{name}-{n_sent}", i): (
                _map_one,
                _Part(tag_of_chunk(product, kind, chunk), (function, chunk)),
            )
            for i, chunk in enumerate(batch)
        }
        if batch:
            bag = Bag(graph, f"{name}-{n_sent}", len(batch))
            futures += client.compute(bag.to_delayed(optimize_graph=False), retries=RETRIES)
        while len(futures) > (n_ahead // 2 if batch else 0):
            _wait_for(futures[0], patience)
            yield value_of(futures.popleft())
        if not batch:
            return


def _wait_for(future: Future, patience: Patience) -> None:
    while not future.done():
        try:
            wait([future], timeout=patience.every_s)
        except TimeoutError:
            patience.count()


def _map_one(part: _Part) -> TaskResult:
    told: list[TaskRecord] = []
    result = traced(part.tag, get_worker().address, told.append, run_task, *part.items)
    return replace(result, record=told[0])


def value_of(future: Future | TaskResult) -> TaskResult:
    """What a task came to. Raises RunError: the scheduler is gone."""
    if isinstance(future, TaskResult):
        return future
    try:
        result: TaskResult = future.result()
    except KilledWorker as error:
        return TaskResult(failure=("killed", str(error), ""))
    except CancelledError as error:
        raise scheduler_gone(str(error)) from None
    return result


def scheduler_gone(why: str) -> RunError:
    """The error of a run whose scheduler ended."""
    return RunError(
        where="scheduler",
        why=f"is gone: {why}",
        do="all done so far is kept; start the cluster and run it again",
    )


def on_worker(
    topic: str, number: int, tag: Tag, function: Callable[..., TaskResult], *args: Any
) -> TaskResult:
    """One task in a worker, which tells the driver what it cost."""
    worker = get_worker()

    def tell(record: TaskRecord) -> None:
        values = (number, [getattr(record, name) for name in COLUMNS])
        worker.loop.add_callback(_with_next_message, worker, topic, values)

    return traced(tag, worker.address, tell, function, *args)


def _with_next_message(worker: Worker, topic: str, values: tuple[int, list[Any]]) -> None:
    # What `log_event` does, but it leaves with the message that the task is done, which comes
    # within the millisecond: two messages a task would cost the scheduler a fifth more.
    worker.batched_stream.buffer.append({"op": "log-event", "topic": topic, "msg": values})


def told(event: tuple[float, Any]) -> tuple[int, TaskRecord]:
    """Number and record of a task from the event that a topic brings."""
    number, values = event[1]
    return number, TaskRecord(*values)


def n_workers_of(client: Client) -> int:
    """How many workers are there. Raises RunError: the scheduler is gone."""
    try:
        return len(client.nthreads())
    except (OSError, TimeoutError) as error:
        raise scheduler_gone(str(error)) from None


def new_id() -> str:
    """A word that no other key has."""
    # A word that is no letters only ends the part of a key that names its group.
    return f"0{uuid.uuid4().hex[:12]}"
