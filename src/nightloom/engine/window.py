"""What to submit next: a pure machine. Products and ended tasks in, submissions out.

No dask, no clock, no files: `run.py` turns outputs into futures and futures into inputs. A product
is begun, measured in parts, packed shard by shard, finished, concluded once. A part whose worker
was killed is taken apart, an item a task; an item that dies while it runs alone is given up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from nightloom.engine.moves import (
    Conclude,
    Drop,
    Ending,
    GiveUp,
    Input,
    NoMoreProducts,
    Output,
    ProductAdded,
    Progress,
    Release,
    Shape,
    Start,
    Submit,
    Task,
    TaskEnded,
    TaskTimed,
    WorkersChanged,
)

TARGET_S = 1.5  # of work in a part: the scheduler feeds about 1,000 tasks a second
TASKS_PER_WORKER = 8  # in flight, so that none waits for the driver
MIN_TASKS = 128
UNTIMED_PER_WORKER = 2  # in flight before the first part of its kind was timed
SAMPLES = 15
LONGEST = 64  # a part is at most so many times the first guess
DEATHS = 2  # of a task that ran alone, before it is given up
TRIES = 8  # of a task whose workers die without it having run
RESTARTS = 3  # of a product whose results died with a worker


@dataclass(slots=True)
class _Flight:
    """A product on its way."""

    shape: Shape
    round: int = 0
    is_begun: bool = False  # its begin was submitted
    is_ready: bool = False  # its begin is done
    n_cut: int = 0
    n_done: int = 0
    parts: dict[int, list[Task]] = field(default_factory=dict)  # by shard
    left: dict[int, int] = field(default_factory=dict)  # items not done, by shard
    packs: dict[int, Task] = field(default_factory=dict)
    n_packed: int = 0
    open: set[Task] = field(default_factory=set)  # queued or in flight

    @property
    def n_shards(self) -> int:
        return math.ceil(self.shape.n_items / self.shape.shard_items)

    def end_of(self, shard: int) -> int:
        return min((shard + 1) * self.shape.shard_items, self.shape.n_items)


class Window:
    """The products in flight; feed it inputs, obey its outputs."""

    def __init__(self, n_workers: int = 1) -> None:
        self._n_workers = max(1, n_workers)
        self._flights: dict[str, _Flight] = {}
        self._uncut: deque[str] = deque()  # products of which parts are still to be cut
        self._urgent: deque[Submit] = deque()
        self._in_flight: set[Task] = set()
        self._no_more = False
        self._times: dict[str, deque[float]] = {}  # seconds of a first guess, by kind of product
        self._out: list[Output] = []

    @property
    def wants_product(self) -> bool:
        """Whether another product may be added: one more than is being cut lies ready."""
        return not self._no_more and len(self._uncut) < 2

    @property
    def is_empty(self) -> bool:
        """Whether every product that was added is concluded."""
        return not self._flights

    @property
    def n_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def max_in_flight(self) -> int:
        return max(MIN_TASKS, TASKS_PER_WORKER * self._n_workers)

    def feed(self, event: Input) -> list[Output]:
        """What follows from something that happened."""
        match event:
            case ProductAdded(shape=shape):
                if shape.product in self._flights:
                    raise ValueError(f"{shape.product} is in flight already")
                self._flights[shape.product] = _Flight(shape)
                self._uncut.append(shape.product)
            case NoMoreProducts():
                self._no_more = True
            case WorkersChanged(n_workers=n):
                self._n_workers = max(1, n)
            case TaskTimed(task=task, seconds=seconds):
                self._timed(task, seconds)
            case TaskEnded(task=task):
                self._ended(event)
        if not self.wants_product:
            self._fill()
        out, self._out = self._out, []
        return out

    def _timed(self, task: Task, seconds: float) -> None:
        flight = self._flights.get(task.product)
        if flight is None or task.kind != "step" or not task.n_items:
            return
        guess_s = seconds / task.n_items * flight.shape.chunk_items
        kind = _kind_of(task.product)
        self._times.setdefault(kind, deque(maxlen=SAMPLES)).append(guess_s)

    def _ended(self, event: TaskEnded) -> None:
        task = event.task
        flight = self._flights.get(task.product)
        if flight is None or task not in self._in_flight:
            return  # of a product that was dropped meanwhile
        self._in_flight.discard(task)
        flight.open.discard(task)
        match event.how:
            case "done":
                self._done(flight, task)
            case "killed":
                self._killed(flight, task, event.deaths)
            case "lost" if flight.round < RESTARTS:
                self._restart(flight)
            case _:
                self._conclude(flight, task, event.how)

    def _done(self, flight: _Flight, task: Task) -> None:
        match task.kind:
            case "begin":
                flight.is_ready = True
                for shard, left in flight.left.items():
                    if not left:
                        self._pack(flight, shard)
            case "step":
                self._part_done(flight, task)
            case "pack":
                flight.n_packed += 1
                shard = task.first // flight.shape.shard_items
                self._out.append(Release(tuple(flight.parts[shard])))
            case "finish":
                self._conclude(flight, task, "done")
                return
        self._finish_if_ready(flight)

    def _part_done(self, flight: _Flight, task: Task) -> None:
        flight.n_done += task.n_items
        self._out.append(Progress(task.product, task.n_items))
        shard = task.first // flight.shape.shard_items
        flight.left[shard] -= task.n_items
        if not flight.left[shard] and flight.is_ready:
            self._pack(flight, shard)

    def _pack(self, flight: _Flight, shard: int) -> None:
        if not flight.shape.packs:
            return
        first = shard * flight.shape.shard_items
        name = flight.shape.product
        task = Task(name, "pack", first, flight.end_of(shard), flight.round)
        flight.packs[shard] = task
        self._queue(flight, Submit(task, _in_order(flight.parts[shard])))

    def _finish_if_ready(self, flight: _Flight) -> None:
        shape = flight.shape
        if not flight.is_ready or flight.n_done < shape.n_items or flight.open:
            return
        if shape.packs and flight.n_packed < flight.n_shards:
            return
        self._queue(flight, Submit(Task(shape.product, "finish", round=flight.round),
                                   self._results(flight)))  # fmt: skip

    def _results(self, flight: _Flight) -> tuple[Task, ...]:
        if flight.shape.packs:
            return _in_order(flight.packs.values())
        return _in_order(part for parts in flight.parts.values() for part in parts)

    def _killed(self, flight: _Flight, task: Task, deaths: int) -> None:
        may_lose = task.kind == "step" and flight.shape.quarantines
        if may_lose and task.n_items > 1:
            shard = task.first // flight.shape.shard_items
            flight.parts[shard].remove(task)
            for item in range(task.first, task.last):
                self._retry(flight, task, item, item + 1)
        elif deaths >= DEATHS and may_lose:
            self._out.append(GiveUp(task))
            self._part_done(flight, task)
            self._finish_if_ready(flight)
        elif deaths >= DEATHS or task.tries >= TRIES:
            self._conclude(flight, task, "killed")
        else:
            if task.kind == "step":
                flight.parts[task.first // flight.shape.shard_items].remove(task)
            self._retry(flight, task, task.first, task.last)

    def _retry(self, flight: _Flight, task: Task, first: int, last: int) -> None:
        again = Task(task.product, task.kind, first, last, task.round, task.tries + 1)
        needs: tuple[Task, ...] = ()
        if task.kind == "step":
            flight.parts[first // flight.shape.shard_items].append(again)
        elif task.kind == "pack":
            shard = first // flight.shape.shard_items
            flight.packs[shard] = again
            needs = _in_order(flight.parts[shard])
        elif task.kind == "finish":
            needs = self._results(flight)
        self._queue(flight, Submit(again, needs))

    def _restart(self, flight: _Flight) -> None:
        self._drop(flight)
        self._out.append(Drop(flight.shape.product))
        if flight.n_done:
            self._out.append(Progress(flight.shape.product, -flight.n_done))
        self._flights[flight.shape.product] = _Flight(flight.shape, flight.round + 1)
        self._uncut.append(flight.shape.product)

    def _conclude(self, flight: _Flight, task: Task, how: Ending) -> None:
        self._out.append(Conclude(task.product, task, how))
        self._drop(flight)
        del self._flights[task.product]

    def _drop(self, flight: _Flight) -> None:
        name = flight.shape.product
        self._in_flight -= flight.open
        self._urgent = deque(s for s in self._urgent if s.task.product != name)
        if name in self._uncut:
            self._uncut.remove(name)

    def _queue(self, flight: _Flight, submit: Submit) -> None:
        flight.open.add(submit.task)
        self._urgent.append(submit)

    def _fill(self) -> None:
        """Submit what is due: ends of products first, then parts, in batches."""
        while self._urgent and len(self._in_flight) < self.max_in_flight:
            self._submit(self._urgent.popleft())
        if len(self._in_flight) > self.max_in_flight // 2:
            return  # one by one would cost the client a message each
        while self._uncut:
            flight = self._flights[self._uncut[0]]
            if len(self._in_flight) >= self._limit(flight):
                return
            if not flight.is_begun:
                self._begin(flight)
            elif flight.n_cut < flight.shape.n_items:
                self._cut(flight)
            if flight.n_cut == flight.shape.n_items:
                self._uncut.popleft()
                if self.wants_product:
                    return

    def _limit(self, flight: _Flight) -> int:
        if not flight.is_begun or _kind_of(flight.shape.product) in self._times:
            return self.max_in_flight
        return min(self.max_in_flight, UNTIMED_PER_WORKER * self._n_workers + 1)

    def _begin(self, flight: _Flight) -> None:
        flight.is_begun = True
        if not flight.round:
            self._out.append(Start(flight.shape.product))
        task = Task(flight.shape.product, "begin", round=flight.round)
        flight.open.add(task)
        self._submit(Submit(task))

    def _cut(self, flight: _Flight) -> None:
        """The next part; none crosses a shard."""
        first = flight.n_cut
        shard = first // flight.shape.shard_items
        last = min(first + self._n_items_of_part(flight), flight.end_of(shard))
        task = Task(flight.shape.product, "step", first, last, flight.round)
        flight.n_cut = last
        flight.parts.setdefault(shard, []).append(task)
        flight.left.setdefault(shard, flight.end_of(shard) - first)
        flight.open.add(task)
        self._submit(Submit(task))

    def _n_items_of_part(self, flight: _Flight) -> int:
        chunk = flight.shape.chunk_items
        times = self._times.get(_kind_of(flight.shape.product))
        if times:
            by_time = chunk * TARGET_S / max(median(times), TARGET_S / LONGEST)
            chunk = max(1, round(by_time))
        if not self._no_more:
            return chunk
        # What is left at the end is cut finer, so that every worker has a share.
        flights = (self._flights[name] for name in self._uncut)
        n_left = sum(f.shape.n_items - f.n_cut for f in flights)
        return max(1, min(chunk, math.ceil(n_left / (2 * self._n_workers))))

    def _submit(self, submit: Submit) -> None:
        self._in_flight.add(submit.task)
        self._out.append(submit)


def _kind_of(product: str) -> str:
    return product.split("/", 1)[0]


def _in_order(tasks: Iterable[Task]) -> tuple[Task, ...]:
    return tuple(sorted(tasks, key=lambda task: task.first))
