"""Recipes on a Dask cluster: the window's outputs become futures, ended futures its inputs.

A part is one task of a bag; its rows stay on the workers. The driver sees counts, outcomes, log
lines, and what each task cost, which workers tell over a topic of the scheduler. Keys are
`KIND-id/PRODUCT`, so that the scheduler keeps one group a kind and a page can name the product.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask.bag import Bag
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, Future, KilledWorker, as_completed
from distributed.protocol.pickle import dumps

from nightloom.engine import moves as m
from nightloom.engine import window as w
from nightloom.engine.calls import call_of, lost_row, on_worker_step, shape_of, with_killed
from nightloom.engine.futures import (
    RETRIES,
    Patience,
    n_workers_of,
    new_id,
    on_worker,
    scheduler_gone,
    told,
    value_of,
)
from nightloom.engine.recipe import (
    Event,
    ItemsDone,
    Recipe,
    Started,
    TaskDone,
)
from nightloom.engine.task import (
    Tag,
    TaskResult,
    conclude,
    deaths_of,
    lines_of,
    lost_record,
    run_alone,
    tag_of,
)
from nightloom.schema.trace import TaskRecord
from nightloom.store.products import FailureKind, new_work_folder
from nightloom.store.work import discard

LOOK_EVERY_S = 0.1
URGENT = 10  # priority of what ends a product over the parts of the next
GONE = "cancelled"  # what futures are when their scheduler is
AGAIN = {"lost", "pending"}  # what they are when their result went with a worker


def make_on(
    client: Client, root: Path, recipes: Iterable[Recipe], *, patience_s: float
) -> Iterator[Event]:
    """Make products on a cluster, a bounded number of tasks at once.

    Raises RunError: the scheduler is gone, or there was no worker for as long as patience_s.
    """
    driver = _Driver(client, root, recipes, patience_s)
    try:
        yield from driver.run()
    finally:
        driver.close()


@dataclass(slots=True)
class _Product:
    """A product in flight: where it grows, and the results of its tasks as far as needed."""

    recipe: Recipe
    began: float = 0.0
    work: Path = Path()
    held: dict[m.Task, Future | TaskResult] = field(default_factory=dict)
    tags: dict[m.Task, Tag] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    failed: set[m.Task] = field(default_factory=set)  # whose result is a failure
    failure: TaskResult | None = None
    n_killed: int = 0  # items that were given up


class _Driver:
    """The shell around a window: its futures, and the folders that its products grow in."""

    def __init__(
        self, client: Client, root: Path, recipes: Iterable[Recipe], patience_s: float
    ) -> None:
        self._client = client
        self._root = root
        self._coming = iter(recipes)
        self._window = w.Window(max(1, n_workers_of(client)))
        self._patience = Patience(client, patience_s)
        self._products: dict[str, _Product] = {}
        self._task_of: dict[Any, m.Task] = {}  # by key; of those that did not end yet
        self._numbers: dict[int, m.Task] = {}  # what a record calls its task
        self._count = itertools.count()
        self._steps: list[m.Task] = []  # to be sent together
        self._inputs: deque[m.Input] = deque()
        self._done = as_completed(raise_errors=False)
        self._dropped: dict[Any, Path] = {}  # folder of each task that may still write there
        self._told: deque[tuple[int, TaskRecord]] = deque()
        self._topic = f"nightloom-{client.id}"
        self._is_lost = False
        client.subscribe_topic(self._topic, self._listen)

    def run(self) -> Iterator[Event]:
        """Until every product is concluded."""
        while True:
            if self._window.wants_product:
                self._add_product()
            elif self._window.is_empty and not self._dropped:
                return
            elif not self._inputs:
                yield from self._wait()
            yield from self._obey()

    def close(self) -> None:
        """Cancel what is in flight and remove its folders."""
        for name in list(self._products):
            self._drop(name)
        for work in set(self._dropped.values()):
            discard(work)  # what is still written there the next start removes
        if self._is_alive():
            self._client.unsubscribe_topic(self._topic)

    def _is_alive(self) -> bool:
        return not self._is_lost and self._client.status == "running"

    def _add_product(self) -> None:
        recipe = next(self._coming, None)
        if recipe is None:
            self._inputs.append(m.NoMoreProducts())
        else:
            self._products[recipe.product] = _Product(recipe)
            self._inputs.append(m.ProductAdded(shape_of(recipe)))

    def _obey(self) -> Iterator[Event]:
        while self._inputs:
            for output in self._window.feed(self._inputs.popleft()):
                yield from self._do(output)
        self._send_steps()

    def _do(self, output: m.Output) -> Iterator[Event]:
        match output:
            case m.Start(product=name):
                product = self._products[name]
                product.began = time.perf_counter()
                yield Started(name, len(product.recipe.items))
            case m.Submit(task=task, needs=needs):
                self._submit(task, needs)
            case m.GiveUp(task=task):
                product = self._products[task.product]
                product.held[task] = TaskResult(value=[lost_row(product.recipe, task)])
                product.n_killed += 1
            case m.Progress(product=name, n_items=n):
                yield ItemsDone(name, n)
            case m.Release(tasks=tasks):
                product = self._products[tasks[0].product]
                results = [product.held.pop(task, None) for task in tasks]
                # In the client's thread, which each of them would have to wake otherwise.
                self._client.loop.add_callback(results.clear)
                for task in tasks:
                    product.tags.pop(task, None)
            case m.Drop(product=name):
                self._drop(name)
            case m.Conclude(product=name, task=task):
                product = self._products[name]
                result = product.failure or value_of(product.held[task])
                self._drop(name)
                del self._products[name]
                yield from lines_of(name, result)
                yield with_killed(
                    conclude(product.recipe, result, time.perf_counter() - product.began),
                    product.n_killed,
                )

    def _submit(self, task: m.Task, needs: tuple[m.Task, ...]) -> None:
        product = self._products[task.product]
        recipe = product.recipe
        first, last = (task.first, task.last) if task.kind == "step" else (0, 0)
        product.tags[task] = tag_of(recipe, task.kind, first, last)
        if task.kind == "begin" and not task.tries:
            try:
                product.work = new_work_folder(self._root, task.product)
            except OSError as error:
                self._fail(task, "transient", f"can't start: {error}")
                return
            if recipe.begin is None:
                self._inputs.append(m.TaskEnded(task, "done"))
                return
        if task.kind == "step" and not task.tries:
            self._steps.append(task)
            return
        results = [product.held[need] for need in needs]
        call = call_of(self._root, recipe, task, product.work, results)
        if task.tries:
            call = (run_alone, self._marker(task), *call)
        future = self._client.submit(
            on_worker, self._topic, self._numbered(task), product.tags[task], *call,
            key=f"{task.kind}-{new_id()}/{task.product}", retries=RETRIES, priority=URGENT,
            pure=False,
        )  # fmt: skip
        self._watch([(task, future)])

    def _send_steps(self) -> None:
        """All parts that wait to be sent, as one message: a bag a product, a task a part."""
        if not self._steps:
            return
        graphs: list[HighLevelGraph] = []
        keys: list[Any] = []
        for name, group in itertools.groupby(self._steps, key=lambda task: task.product):
            product = self._products[name]
            recipe = product.recipe
            # As bytes: the scheduler takes a graph apart and would make objects of all items.
            common = dumps((self._topic, recipe.step, recipe.job))
            key = f"step-{new_id()}/{name}"
            parts = {
                (key, i): (on_worker_step, common, dumps((
                    self._numbered(task), product.tags[task], recipe.items[task.first : task.last],
                )))
                for i, task in enumerate(group)
            }  # fmt: skip
            graphs.append(Bag(parts, key, len(parts)).dask)
            keys += parts
        # Layers as they are: a Delayed a part, or a dict, which dask would hash, costs more than
        # all the rest of a part's way.
        graph = HighLevelGraph.merge(*graphs)
        futures = self._client.get(graph, keys, sync=False, retries=RETRIES)
        self._watch(zip(self._steps, futures, strict=True))
        self._steps = []

    def _numbered(self, task: m.Task) -> int:
        number = next(self._count)
        self._numbers[number] = task
        self._products[task.product].numbers.append(number)
        return number

    def _watch(self, sent: Iterable[tuple[m.Task, Future]]) -> None:
        futures = []
        for task, future in sent:
            self._task_of[future.key] = task
            self._products[task.product].held[task] = future
            futures.append(future)
        # In the client's thread, which is then woken once and not for each of them.
        self._client.sync(_add, self._done, futures)

    def _listen(self, event: tuple[float, Any]) -> None:
        # Called in the client's thread, before the end of the task is known.
        self._told.append(told(event))

    def _wait(self) -> Iterator[Event]:
        """Take in what ended, at least one task."""
        if self._done.is_empty():
            raise RuntimeError(f"nothing is in flight of {', '.join(self._products)}")
        while not self._done.has_ready():
            self._count_workers()
            with self._done.thread_condition:
                self._done.thread_condition.wait(timeout=LOOK_EVERY_S)
        futures = self._done.next_batch(block=False)
        while self._told:
            number, record = self._told.popleft()
            yield TaskDone(record.product, record)
            task = self._numbers.get(number)
            if task is not None and record.outcome == "done":
                self._inputs.append(m.TaskTimed(task, record.seconds))
            elif task is not None and record.outcome == "failed":
                self._products[task.product].failed.add(task)
        for future in futures:
            task = self._task_of.pop(future.key, None)
            if task is not None:
                yield from self._ended(task, future)
            else:
                self._remove(self._dropped.pop(future.key, None))
        self._count_workers()

    def _count_workers(self) -> None:
        n = self._patience.count()
        if n:
            self._inputs.append(m.WorkersChanged(n))

    def _ended(self, task: m.Task, future: Future) -> Iterator[Event]:
        product = self._products[task.product]
        if future.status in AGAIN:
            # Since it ended, the last worker that had its result is gone: it is made again.
            self._watch([(task, future)])
            return
        if future.status == GONE:
            self._is_lost = True
            raise scheduler_gone(f"it let go of {future.key}")
        if future.status == "finished" and task not in product.failed:
            self._inputs.append(m.TaskEnded(task, "done"))
            return
        if future.status == "finished":
            product.failure = value_of(future)
            self._inputs.append(m.TaskEnded(task, "failed"))
            return
        error = future.exception()
        if not isinstance(error, KilledWorker):
            self._fail(task, "transient", str(error))
            return
        yield TaskDone(task.product, lost_record(product.tags[task]))
        deaths = deaths_of(self._marker(task)) if task.tries else 0
        is_own = error.task == future.key
        self._inputs.append(m.TaskEnded(task, "killed" if is_own else "lost", deaths))

    def _fail(self, task: m.Task, kind: FailureKind, why: str) -> None:
        self._products[task.product].failure = TaskResult(failure=(kind, why, ""))
        self._inputs.append(m.TaskEnded(task, "failed"))

    def _marker(self, task: m.Task) -> Path:
        return self._products[task.product].work / f".alone-{task.kind}-{task.first}"

    def _drop(self, name: str) -> None:
        """Forget all tasks of a product and what it wrote; it may be begun again."""
        product = self._products[name]
        futures = [f for f in product.held.values() if isinstance(f, Future)]
        open_ones = [f for f in futures if f.key in self._task_of]
        if open_ones and self._is_alive():
            # One that writes may run by now: its folder has to outlive it, or it comes back.
            writers = [f for f in open_ones if self._task_of[f.key].kind != "step"]
            self._dropped |= {f.key: product.work for f in writers}
            self._client.cancel([f for f in open_ones if f.key not in self._dropped])
        for future in open_ones:
            del self._task_of[future.key]
        for number in product.numbers:
            del self._numbers[number]
        self._steps = [task for task in self._steps if task.product != name]
        self._remove(product.work)
        self._products[name] = _Product(product.recipe, product.began)

    def _remove(self, work: Path | None) -> None:
        """Remove a folder that no task writes to any more."""
        if work is not None and work.name and work not in self._dropped.values():
            discard(work)


async def _add(done: as_completed, futures: list[Future]) -> None:
    done.update(futures)
