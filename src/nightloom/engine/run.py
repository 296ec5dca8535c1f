"""Recipes on a Dask cluster: the window's outputs become futures, ended futures its inputs.

A part is one task of a bag; its rows stay on the workers. The driver sees counts, outcomes, log
lines, and what each task cost, which workers tell over a topic of the scheduler. Keys are
`KIND-id/PRODUCT`, so that the scheduler keeps one group a kind and a page can name the product.
"""

from __future__ import annotations

import itertools
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dask.bag import Bag
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, Future, KilledWorker, as_completed, get_worker

from nightloom.engine import window as w
from nightloom.engine.recipe import Event, ItemsDone, Recipe, Started, TaskDone
from nightloom.engine.task import (
    Tag,
    TaskResult,
    conclude,
    deaths_of,
    lines_of,
    lost_record,
    run_alone,
    run_begin,
    run_finish,
    run_pack,
    run_step,
    run_task,
    tag_of,
    tag_of_chunk,
    traced,
)
from nightloom.errors import RunError
from nightloom.schema.trace import COLUMNS, TaskKind, TaskRecord
from nightloom.store.products import FailureKind, new_work_folder

RETRIES = 2
COUNT_WORKERS_EVERY_S = 10.0
URGENT = 10  # priority of what ends a product over the parts of the next
MAP_TASKS_PER_WORKER = 4
REASON_LOST = "the worker that measured it died every time (memory, or a crash)"
GONE = "cancelled"  # what futures are when their scheduler is
AGAIN = {"lost", "pending"}  # what they are when their result went with a worker


@dataclass(frozen=True, slots=True)
class _Part:
    """Arguments of a part, as one object: dask would look through a tuple for tasks."""

    number: int
    tag: Tag
    items: tuple[Any, ...]


def map_on(
    client: Client, function: Callable[[Any], Any], chunks: Iterable[Any], *, kind: TaskKind,
    product: str,
) -> Iterator[TaskResult]:  # fmt: skip
    """A function over chunks, one task a chunk; results in the order of the chunks."""
    n_ahead = max(w.MIN_TASKS, MAP_TASKS_PER_WORKER * _n_workers(client))
    rest = iter(chunks)
    futures: deque[Future] = deque()
    name = f"{kind}-{_id()}/{product}"
    for n_sent in itertools.count(0, n_ahead):
        batch = list(itertools.islice(rest, n_ahead))
        graph = {
            (f"{name}-{n_sent}", i): (
                _map_one,
                _Part(0, tag_of_chunk(product, kind, chunk), (function, chunk)),
            )
            for i, chunk in enumerate(batch)
        }
        if batch:
            bag = Bag(graph, f"{name}-{n_sent}", len(batch))
            futures += client.compute(bag.to_delayed(optimize_graph=False), retries=RETRIES)
        while len(futures) > (n_ahead // 2 if batch else 0):
            yield _value(futures.popleft())
        if not batch:
            return


def _map_one(part: _Part) -> TaskResult:
    told: list[TaskRecord] = []
    result = traced(part.tag, get_worker().address, told.append, run_task, *part.items)
    return replace(result, record=told[0])


def _value(future: Future | TaskResult) -> TaskResult:
    if isinstance(future, TaskResult):
        return future
    try:
        result: TaskResult = future.result()
    except KilledWorker as error:
        return TaskResult(failure=("killed", str(error), ""))
    except CancelledError as error:
        raise _scheduler_gone(str(error)) from None
    return result


def _scheduler_gone(why: str) -> RunError:
    return RunError(
        where="scheduler",
        why=f"is gone: {why}",
        do="all done so far is kept; start the cluster and run it again",
    )


def make_on(client: Client, root: Path, recipes: Iterable[Recipe]) -> Iterator[Event]:
    """Make products on a cluster, a bounded number of tasks at once.

    Raises RunError: the scheduler is gone.
    """
    driver = _Driver(client, root, recipes)
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
    held: dict[w.Task, Future | TaskResult] = field(default_factory=dict)
    tags: dict[w.Task, Tag] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    failed: set[w.Task] = field(default_factory=set)  # whose result is a failure
    failure: TaskResult | None = None


class _Driver:
    """The shell around a window: its futures, and the folders that its products grow in."""

    def __init__(self, client: Client, root: Path, recipes: Iterable[Recipe]) -> None:
        self._client = client
        self._root = root
        self._coming = iter(recipes)
        self._window = w.Window(_n_workers(client))
        self._counted = time.monotonic()
        self._products: dict[str, _Product] = {}
        self._task_of: dict[Any, w.Task] = {}  # by key; of those that did not end yet
        self._numbers: dict[int, w.Task] = {}  # what a record calls its task
        self._count = itertools.count()
        self._steps: list[w.Task] = []  # to be sent together
        self._inputs: deque[w.Input] = deque()
        self._done = as_completed(raise_errors=False)
        self._told: deque[tuple[int, TaskRecord]] = deque()
        self._topic = f"nightloom-{client.id}"
        self._is_lost = False
        client.subscribe_topic(self._topic, self._listen)

    def run(self) -> Iterator[Event]:
        """Until every product is concluded."""
        while True:
            if self._window.wants_product:
                self._add_product()
            elif self._window.is_empty:
                return
            elif not self._inputs:
                yield from self._wait()
            yield from self._obey()

    def close(self) -> None:
        """Cancel what is in flight and remove its folders."""
        for name in list(self._products):
            self._drop(name)
        if self._is_alive():
            self._client.unsubscribe_topic(self._topic)

    def _is_alive(self) -> bool:
        return not self._is_lost and self._client.status == "running"

    def _add_product(self) -> None:
        recipe = next(self._coming, None)
        if recipe is None:
            self._inputs.append(w.NoMoreProducts())
        else:
            self._products[recipe.product] = _Product(recipe)
            self._inputs.append(w.ProductAdded(_shape(recipe)))

    def _obey(self) -> Iterator[Event]:
        while self._inputs:
            for output in self._window.feed(self._inputs.popleft()):
                yield from self._do(output)
        self._send_steps()

    def _do(self, output: w.Output) -> Iterator[Event]:
        match output:
            case w.Start(product=name):
                product = self._products[name]
                product.began = time.perf_counter()
                yield Started(name, len(product.recipe.items))
            case w.Submit(task=task, needs=needs):
                self._submit(task, needs)
            case w.GiveUp(task=task):
                product = self._products[task.product]
                product.held[task] = TaskResult(value=[_lost_row(product.recipe, task)])
            case w.Progress(product=name, n_items=n):
                yield ItemsDone(name, n)
            case w.Release(tasks=tasks):
                product = self._products[tasks[0].product]
                for task in tasks:
                    product.held.pop(task, None)
                    product.tags.pop(task, None)
            case w.Drop(product=name):
                self._drop(name)
            case w.Conclude(product=name, task=task):
                product = self._products[name]
                result = product.failure or _value(product.held[task])
                self._drop(name)
                del self._products[name]
                yield from lines_of(name, result)
                yield conclude(product.recipe, result, time.perf_counter() - product.began)

    def _submit(self, task: w.Task, needs: tuple[w.Task, ...]) -> None:
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
                self._inputs.append(w.TaskEnded(task, "done"))
                return
        if task.kind == "step" and not task.tries:
            self._steps.append(task)
            return
        results = [product.held[need] for need in needs]
        call = _call(self._root, recipe, task, product.work, results)
        if task.tries:
            call = (run_alone, self._marker(task), *call)
        future = self._client.submit(
            _on_worker, self._topic, self._numbered(task), product.tags[task], *call,
            key=f"{task.kind}-{_id()}/{task.product}", retries=RETRIES, priority=URGENT, pure=False,
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
            run = partial(_on_worker_step, self._topic, recipe.step, recipe.job)
            key = f"step-{_id()}/{name}"
            parts = {
                (key, i): (run, _Part(self._numbered(task), product.tags[task],
                                      recipe.items[task.first : task.last]))
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

    def _numbered(self, task: w.Task) -> int:
        number = next(self._count)
        self._numbers[number] = task
        self._products[task.product].numbers.append(number)
        return number

    def _watch(self, sent: Iterable[tuple[w.Task, Future]]) -> None:
        futures = []
        for task, future in sent:
            self._task_of[future.key] = task
            self._products[task.product].held[task] = future
            futures.append(future)
        # In the client's thread, which is then woken once and not for each of them.
        self._client.sync(_add, self._done, futures)

    def _listen(self, event: tuple[float, Any]) -> None:
        # Called in the client's thread, before the end of the task is known.
        number, values = event[1]
        self._told.append((number, TaskRecord(*values)))

    def _wait(self) -> Iterator[Event]:
        """Take in what ended, at least one task."""
        futures = self._done.next_batch()
        while self._told:
            number, record = self._told.popleft()
            yield TaskDone(record.product, record)
            task = self._numbers.get(number)
            if task is not None and record.outcome == "done":
                self._inputs.append(w.TaskTimed(task, record.seconds))
            elif task is not None and record.outcome == "failed":
                self._products[task.product].failed.add(task)
        for future in futures:
            task = self._task_of.pop(future.key, None)
            if task is not None:  # else of a product that was dropped
                yield from self._ended(task, future)
        if time.monotonic() - self._counted > COUNT_WORKERS_EVERY_S:
            self._counted = time.monotonic()
            self._inputs.append(w.WorkersChanged(_n_workers(self._client)))

    def _ended(self, task: w.Task, future: Future) -> Iterator[Event]:
        product = self._products[task.product]
        if future.status in AGAIN:
            # Since it ended, the last worker that had its result is gone: it is made again.
            self._watch([(task, future)])
            return
        if future.status == GONE:
            self._is_lost = True
            raise _scheduler_gone(f"it let go of {future.key}")
        if future.status == "finished" and task not in product.failed:
            self._inputs.append(w.TaskEnded(task, "done"))
            return
        if future.status == "finished":
            product.failure = _value(future)
            self._inputs.append(w.TaskEnded(task, "failed"))
            return
        error = future.exception()
        if not isinstance(error, KilledWorker):
            self._fail(task, "transient", str(error))
            return
        yield TaskDone(task.product, lost_record(product.tags[task]))
        deaths = deaths_of(self._marker(task)) if task.tries else 0
        is_own = error.task == future.key
        self._inputs.append(w.TaskEnded(task, "killed" if is_own else "lost", deaths))

    def _fail(self, task: w.Task, kind: FailureKind, why: str) -> None:
        self._products[task.product].failure = TaskResult(failure=(kind, why, ""))
        self._inputs.append(w.TaskEnded(task, "failed"))

    def _marker(self, task: w.Task) -> Path:
        return self._products[task.product].work / f".alone-{task.kind}-{task.first}"

    def _drop(self, name: str) -> None:
        """Forget all tasks of a product and what it wrote; it may be begun again."""
        product = self._products[name]
        futures = [f for f in product.held.values() if isinstance(f, Future)]
        open_ones = [f for f in futures if self._task_of.pop(f.key, None) is not None]
        if open_ones and self._is_alive():
            self._client.cancel(open_ones)
        for number in product.numbers:
            del self._numbers[number]
        self._steps = [task for task in self._steps if task.product != name]
        if product.work.name:
            shutil.rmtree(product.work, ignore_errors=True)
        self._products[name] = _Product(product.recipe, product.began)


async def _add(done: as_completed, futures: list[Future]) -> None:
    done.update(futures)


def _lost_row(recipe: Recipe, task: w.Task) -> Any:
    assert recipe.lost is not None
    return recipe.lost(recipe.job, recipe.items[task.first], REASON_LOST)


def _shape(recipe: Recipe) -> w.Shape:
    n_items = len(recipe.items) if recipe.step is not None else 0
    return w.Shape(
        recipe.product, n_items, recipe.chunk_items, recipe.shard_items,
        packs=recipe.pack is not None, quarantines=recipe.lost is not None,
    )  # fmt: skip


def _call(
    root: Path, recipe: Recipe, task: w.Task, work: Path, results: list[Any]
) -> tuple[Any, ...]:
    """Function and arguments of a task that is sent alone."""
    job = recipe.job
    match task.kind:
        case "begin":
            return run_begin, recipe.begin, job, work
        case "step":
            return run_step, recipe.step, job, recipe.items[task.first : task.last]
        case "pack":
            return run_pack, recipe.pack, job, work, task.first, results
        case "finish":
            return (
                run_finish, root, recipe.product, recipe.fingerprint, recipe.finish, job, work,
                results,
            )  # fmt: skip


def _on_worker_step(topic: str, step: Any, job: Any, part: _Part) -> TaskResult:
    return _on_worker(topic, part.number, part.tag, run_step, step, job, part.items)


def _on_worker(
    topic: str, number: int, tag: Tag, function: Callable[..., TaskResult], *args: Any
) -> TaskResult:
    """One task in a worker, which tells the driver what it cost."""
    worker = get_worker()

    def tell(record: TaskRecord) -> None:
        worker.log_event(topic, (number, [getattr(record, name) for name in COLUMNS]))

    return traced(tag, worker.address, tell, function, *args)


def _n_workers(client: Client) -> int:
    try:
        return max(1, len(client.nthreads()))
    except (OSError, TimeoutError) as error:
        raise _scheduler_gone(str(error)) from None


def _id() -> str:
    # A word that is no letters only ends the part of a key that names its group.
    return f"0{uuid.uuid4().hex[:12]}"
