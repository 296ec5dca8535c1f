"""The window without a cluster: whatever happens in whatever order, nothing is lost or twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightloom.engine import moves as m
from nightloom.engine import window as w


@dataclass
class World:
    """Plays scheduler and workers: ends tasks in any order, kills some, checks every output."""

    window: w.Window
    shapes: list[m.Shape]
    killers: set[tuple[str, int]]  # items that kill whoever measures them
    fails: set[str]  # products whose finish fails
    random: Random
    trouble: float  # how often an innocent task is killed or loses its results
    running: dict[m.Task, tuple[m.Task, ...]] = field(default_factory=dict)
    deaths: Counter[tuple[str, str, int, int]] = field(default_factory=Counter)
    rows: dict[str, Counter[int]] = field(default_factory=dict)  # packed or finished, by item
    given_up: dict[str, set[int]] = field(default_factory=dict)
    held: dict[m.Task, list[int]] = field(default_factory=dict)  # items whose rows are kept
    started: Counter[str] = field(default_factory=Counter)
    concluded: dict[str, str] = field(default_factory=dict)
    progress: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    bound: int = 0

    def run(self) -> None:
        coming = iter(self.shapes)
        for _ in range(200_000):
            if self.window.wants_product:
                shape = next(coming, None)
                event = m.NoMoreProducts() if shape is None else m.ProductAdded(shape)
                self.obey(self.window.feed(event))
            elif self.window.is_empty:
                break
            else:
                assert self.running, "the window waits for nothing"
                self.end_one()
            self.bound = max(self.bound, self.window.max_in_flight)
            assert len(self.running) == self.window.n_in_flight <= self.bound
        assert self.window.is_empty
        assert not self.running

    def end_one(self) -> None:
        task = self.random.choice(sorted(self.running, key=repr))
        needs = self.running.pop(task)
        how, deaths = self.how(task)
        if how == "done" and task.kind == "step":
            self.held[task] = list(range(task.first, task.last))
        if how == "done" and task.kind == "pack":
            self.held[task] = self.gathered(needs)
        if how == "done" and task.kind == "finish":
            self.rows[task.product] = Counter(self.gathered(needs))
        if self.random.random() < 0.3:
            self.obey(self.window.feed(m.TaskTimed(task, self.random.choice([0.0, 0.2, 9.0]))))
        if self.random.random() < 0.05:
            self.obey(self.window.feed(m.WorkersChanged(self.random.randrange(9))))
        self.obey(self.window.feed(m.TaskEnded(task, how, deaths)))

    def gathered(self, needs: tuple[m.Task, ...]) -> list[int]:
        assert list(needs) == sorted(needs, key=lambda task: task.first)
        return [item for need in needs for item in self.held[need]]

    def how(self, task: m.Task) -> tuple[m.Ending, int]:
        key = (task.product, task.kind, task.first, task.last)
        items = {(task.product, item) for item in range(task.first, task.last)}
        if task.kind == "step" and items & self.killers:
            self.deaths[key] += 2 if task.tries else 0
            return "killed", self.deaths[key]
        if task.kind == "finish" and task.product in self.fails:
            return "failed", 0
        if self.random.random() < self.trouble:
            # The worker fell under it while it ran something else.
            lost = task.kind in ("pack", "finish") and self.random.random() < 0.5
            if lost and self.rounds[task.product] < w.RESTARTS:
                return "lost", 0
            if not lost and task.tries < w.TRIES:
                return "killed", self.random.randrange(2)
        return "done", 0

    def obey(self, outputs: list[m.Output]) -> None:
        for output in outputs:
            match output:
                case m.Start(product=product):
                    self.started[product] += 1
                case m.Submit(task=task, needs=needs):
                    assert task not in self.running
                    assert all(need in self.held for need in needs)
                    self.running[task] = needs
                case m.GiveUp(task=task):
                    assert task.n_items == 1
                    self.given_up.setdefault(task.product, set()).add(task.first)
                    self.held[task] = [task.first]
                case m.Progress(product=product, n_items=n):
                    self.progress[product] += n
                case m.Release(tasks=tasks):
                    for task in tasks:
                        del self.held[task]
                case m.Drop(product=product):
                    self.rounds[product] += 1
                    self.forget(product)
                case m.Conclude(product=product, how=how):
                    assert product not in self.concluded
                    self.concluded[product] = how
                    self.forget(product)

    def forget(self, product: str) -> None:
        for table in (self.running, self.held):
            for task in [task for task in table if task.product == product]:
                del table[task]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    shapes = [
        m.Shape(
            f"{draw(st.sampled_from(['cube', 'page']))}/{i}",
            n_items=draw(st.sampled_from([0, 1, 2, 7, 30, 200])),
            chunk_items=draw(st.integers(1, 9)),
            shard_items=draw(st.sampled_from([1, 4, 16, 1 << 30])),
            packs=draw(st.booleans()),
            quarantines=draw(st.booleans()),
        )
        for i in range(draw(st.integers(0, 12)))
    ]
    killers = {
        (shape.product, draw(st.integers(0, shape.n_items - 1)))
        for shape in shapes
        if shape.n_items and draw(st.integers(0, 3)) == 0
    }
    fails = {shape.product for shape in shapes if draw(st.integers(0, 5)) == 0}
    return World(
        w.Window(draw(st.integers(0, 5))), shapes, killers, fails,
        Random(draw(st.integers(0, 1 << 16))), draw(st.sampled_from([0.0, 0.1, 0.3])),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(world=worlds())
def test_every_product_is_concluded_once_with_every_item(world: World) -> None:
    world.run()
    for shape in world.shapes:
        name = shape.product
        bad = {item for product, item in world.killers if product == name}
        assert world.started[name] == 1
        assert set(world.concluded) == {s.product for s in world.shapes}
        if bad and not shape.quarantines:
            assert world.concluded[name] == "killed"
        elif name in world.fails:
            assert world.concluded[name] == "failed"
        else:
            assert world.concluded[name] == "done"
            assert world.rows[name] == Counter(range(shape.n_items))
            assert world.progress[name] == shape.n_items
            assert world.given_up.get(name, set()) == bad


def play(shape: m.Shape, n_workers: int, part_s: float) -> list[m.Task]:
    """The parts of one product when every item takes the same time."""
    window = w.Window(n_workers)
    queue = [*window.feed(m.ProductAdded(shape)), *window.feed(m.NoMoreProducts())]
    parts: list[m.Task] = []
    while queue:
        output = queue.pop(0)
        if isinstance(output, m.Submit):
            task = output.task
            if task.kind == "step":
                parts.append(task)
            queue += window.feed(m.TaskTimed(task, part_s * task.n_items))
            queue += window.feed(m.TaskEnded(task, "done"))
    assert window.is_empty
    return parts


def test_parts_grow_to_seconds_of_work_whatever_was_guessed() -> None:
    shape = m.Shape("cube/a", 20_000, 1, 1 << 30, packs=False, quarantines=True)
    parts = play(shape, 2, 0.05)
    sizes = [task.n_items for task in parts]
    assert sizes[0] == 1
    assert max(sizes) == round(w.TARGET_S / 0.05)
    wrong = m.Shape("cube/a", 20_000, 1000, 1 << 30, packs=False, quarantines=True)
    assert max(t.n_items for t in play(wrong, 2, 0.05)[10:]) == round(w.TARGET_S / 0.05)


def test_a_small_night_is_shared_by_all_workers() -> None:
    shape = m.Shape("cube/a", 40, 100, 1 << 30, packs=True, quarantines=True)
    assert len(play(shape, 8, 0.01)) >= 16


def test_a_million_frames_never_fill_the_scheduler() -> None:
    window = w.Window(4)
    most = n_parts = 0
    running: list[m.Task] = []
    coming = (m.Shape(f"cube/{i}", 100, 4, 512, packs=True, quarantines=True)
              for i in range(2_000))  # fmt: skip
    concluded = 0
    while not (window.is_empty and not window.wants_product):
        if window.wants_product:
            shape = next(coming, None)
            outputs = window.feed(m.NoMoreProducts() if shape is None else m.ProductAdded(shape))
        else:
            outputs = window.feed(m.TaskEnded(running.pop(0), "done"))
        running += [o.task for o in outputs if isinstance(o, m.Submit)]
        n_parts += sum(isinstance(o, m.Submit) and o.task.kind == "step" for o in outputs)
        concluded += sum(isinstance(o, m.Conclude) for o in outputs)
        most = max(most, len(running))
    assert concluded == 2_000
    assert n_parts == pytest.approx(2_000 * 25, rel=0.01)
    assert most <= window.max_in_flight


def test_a_product_twice_at_once_is_refused() -> None:
    window = w.Window()
    shape = m.Shape("cube/a", 3, 1, 8, packs=True, quarantines=True)
    window.feed(m.ProductAdded(shape))
    with pytest.raises(ValueError, match="in flight already"):
        window.feed(m.ProductAdded(shape))
