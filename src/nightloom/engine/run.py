"""Recipes on a Dask cluster: a bag of items a product, one task a partition, a window in flight.

Partitions stay on the workers as futures; the driver sees counts, outcomes and log lines.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dask.bag import Bag
from distributed import Client, Future, KilledWorker, as_completed

from nightloom.engine.recipe import (
    Event,
    ItemsDone,
    Recipe,
    Started,
    TaskResult,
    conclude,
    lines_of,
    partitions,
    run_finish,
    run_pack,
    run_step,
    run_task,
)
from nightloom.store.products import FailureKind, new_work_folder

RETRIES = 2
RESTARTS = 3  # of a product whose results died with a worker
WINDOW_PER_WORKER = 2  # products in flight for each worker, so that none waits for the driver


@dataclass(slots=True)
class _Flight:
    """A product on its way: its futures, by what they are."""

    recipe: Recipe
    work: Path
    started: float
    parts: list[Future] = field(default_factory=list)
    cuts: list[tuple[int, int, int]] = field(default_factory=list)
    waiting: dict[int, set[str]] = field(default_factory=dict)  # shard -> keys not done
    packs: dict[int, Future] = field(default_factory=dict)
    packing: set[str] = field(default_factory=set)
    last: Future | None = None
    n_done: int = 0


def map_on(
    client: Client, function: Callable[[Any], Any], chunks: Sequence[Any]
) -> Iterator[TaskResult]:
    """A function over chunks as a bag, one task a chunk; results in the order of the chunks."""
    name = f"map-{uuid.uuid4().hex}"
    graph = {(name, i): (run_task, function, chunk) for i, chunk in enumerate(chunks)}
    futures = client.compute(Bag(graph, name, len(chunks)).to_delayed(), retries=RETRIES)
    for future in futures:
        yield future.result()


def make_on(client: Client, root: Path, recipes: Sequence[Recipe]) -> Iterator[Event]:
    """Make products on a cluster, a bounded number at once."""
    waiting = deque(recipes)
    n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    window = WINDOW_PER_WORKER * n_workers
    flights: dict[str, _Flight] = {}
    owner: dict[str, str] = {}
    restarts: dict[str, int] = {}
    done = as_completed(raise_errors=False)
    try:
        while waiting or flights:
            while waiting and len(flights) < window:
                recipe = waiting.popleft()
                if recipe.product not in restarts:
                    yield Started(recipe.product, len(recipe.items))
                failed = _launch(client, root, recipe, n_workers, flights, owner, done)
                if failed is not None:
                    yield conclude(recipe, failed, 0.0)
            if not flights:
                continue
            future = next(done)
            flight = flights[owner.pop(future.key)]
            product = flight.recipe.product
            if flight.last is None or future.key != flight.last.key:
                yield from _advance(client, root, flight, future, owner, done)
                continue
            del flights[product]
            shutil.rmtree(flight.work, ignore_errors=True)
            result = _result(future)
            if _was_killed(result) and restarts.setdefault(product, 0) < RESTARTS:
                # It lost what lay on a worker that another task had killed: not its own fault.
                restarts[product] += 1
                client.cancel([*flight.parts, *flight.packs.values()])
                yield ItemsDone(product, -flight.n_done)
                waiting.append(flight.recipe)
                continue
            yield from lines_of(product, result)
            yield conclude(flight.recipe, result, time.perf_counter() - flight.started)
    finally:
        for flight in flights.values():
            client.cancel([*flight.parts, *flight.packs.values()])
            shutil.rmtree(flight.work, ignore_errors=True)


def _launch(
    client: Client, root: Path, recipe: Recipe, n_workers: int,
    flights: dict[str, _Flight], owner: dict[str, str], done: Any,
) -> TaskResult | None:  # fmt: skip
    """Submit the partitions of a product; returns why it could not be started, or None."""
    try:
        flight = _Flight(recipe, new_work_folder(root, recipe.product), time.perf_counter())
        if recipe.begin is not None:
            recipe.begin(recipe.job, flight.work)
    except OSError as error:
        return TaskResult(failure=("transient", f"can't start: {error}", ""))
    flights[recipe.product] = flight
    if recipe.step is not None and recipe.items:
        _submit_parts(client, flight, recipe.step, n_workers)
        for future in flight.parts:
            _watch(future, flight, owner, done)
    else:
        _submit_finish(client, root, flight, [])
        _watch(flight.last, flight, owner, done)
    return None


def _submit_parts(
    client: Client, flight: _Flight, step: Callable[..., Any], n_workers: int
) -> None:
    recipe = flight.recipe
    # Small nights are cut finer, so that every worker has a share.
    chunk = max(1, min(recipe.chunk_items, -(-len(recipe.items) // (2 * n_workers))))
    flight.cuts = partitions(len(recipe.items), chunk_items=chunk, shard_items=recipe.shard_items)
    name = f"{recipe.product}-{uuid.uuid4().hex}"
    run = partial(run_step, step, recipe.job)
    graph = {(name, i): (run, recipe.items[a:b]) for i, (_, a, b) in enumerate(flight.cuts)}
    bag = Bag(graph, name, len(flight.cuts))
    flight.parts = client.compute(bag.to_delayed(), retries=RETRIES)
    for (shard, _, _), future in zip(flight.cuts, flight.parts, strict=True):
        flight.waiting.setdefault(shard, set()).add(future.key)


def _advance(
    client: Client, root: Path, flight: _Flight, future: Future, owner: dict[str, str], done: Any
) -> Iterator[Event]:
    """Take in one future that ended, and submit what it makes possible."""
    recipe = flight.recipe
    if future.key in flight.packing:
        flight.packing.discard(future.key)
    else:
        yield from _part_done(client, flight, future, owner, done)
    if not flight.packing and not flight.waiting:
        inputs = list(flight.packs.values()) if recipe.pack is not None else flight.parts
        _submit_finish(client, root, flight, inputs)
        _watch(flight.last, flight, owner, done)


def _part_done(
    client: Client, flight: _Flight, future: Future, owner: dict[str, str], done: Any
) -> Iterator[Event]:
    recipe = flight.recipe
    index = next(i for i, part in enumerate(flight.parts) if part.key == future.key)
    shard, first, last = flight.cuts[index]
    if future.status == "error" and isinstance(future.exception(), KilledWorker) and recipe.lost:
        rescued = _one_by_one(client, recipe, first, last)
        flight.parts[index] = client.submit(_same, rescued, pure=False)
    elif future.status == "error":
        flight.parts[index] = client.submit(_same, _result(future), pure=False)
    flight.n_done += last - first
    yield ItemsDone(recipe.product, last - first)
    flight.waiting[shard].discard(future.key)
    if flight.waiting[shard]:
        return
    del flight.waiting[shard]
    if recipe.pack is None:
        return
    mine = [i for i, cut in enumerate(flight.cuts) if cut[0] == shard]
    pack = client.submit(
        run_pack, recipe.pack, recipe.job, flight.work, flight.cuts[mine[0]][1],
        [flight.parts[i] for i in mine], retries=RETRIES, pure=False,
    )  # fmt: skip
    flight.packs[shard] = pack
    flight.packing.add(pack.key)
    _watch(pack, flight, owner, done)


def _one_by_one(client: Client, recipe: Recipe, first: int, last: int) -> TaskResult:
    """A partition that killed its worker, an item a task: who kills again is given up."""
    rows: list[Any] = []
    for item in recipe.items[first:last]:
        future = client.submit(run_step, recipe.step, recipe.job, (item,), pure=False)
        try:
            result: TaskResult = future.result()
        except KilledWorker:
            reason = "the worker that measured it died every time (memory, or a crash)"
            result = TaskResult(value=[recipe.lost(recipe.job, item, reason)])  # type: ignore[misc]
        if result.failure is not None:
            return result
        rows += result.value
    return TaskResult(value=rows)


def _submit_finish(client: Client, root: Path, flight: _Flight, inputs: Iterable[Future]) -> None:
    recipe = flight.recipe
    flight.last = client.submit(
        run_finish, root, recipe.product, recipe.fingerprint, recipe.finish, recipe.job,
        flight.work, list(inputs), retries=RETRIES, pure=False,
    )  # fmt: skip


def _watch(future: Future | None, flight: _Flight, owner: dict[str, str], done: Any) -> None:
    if future is not None:
        owner[future.key] = flight.recipe.product
        done.add(future)


def _result(future: Future) -> TaskResult:
    """The value of a future that ended; an error raised in it as a failure."""
    if future.status == "finished":
        result: TaskResult = future.result()
        return result
    error = future.exception()
    kind: FailureKind = "killed" if isinstance(error, KilledWorker) else "transient"
    return TaskResult(failure=(kind, str(error), ""))


def _was_killed(result: TaskResult) -> bool:
    return result.failure is not None and result.failure[0] == "killed"


def _same(result: TaskResult) -> TaskResult:
    return result
