#!/usr/bin/env python
"""What the scheduler and the driver spend on a part that does nothing, beside a bare dask.bag.

Both on the same scheduler and two workers, in turn; CPU of the two processes, medians.

    scripts/bench_engine.py --parts 2000 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dask.bag import Bag
from distributed import Client, wait

from bench_scale import cluster, cpu_s
from nightloom.engine.cluster import Engine
from nightloom.engine.recipe import Made, Recipe, TaskDone

ITEMS_A_PART = 16
PARTS_A_PRODUCT = 200


def nothing(part: int) -> list[int]:
    """A part of the bare bag."""
    return [0]


def step(job: None, items: tuple[Any, ...]) -> list[int]:
    """A part of ours."""
    return [0] * len(items)


def finish(job: None, work: Path, results: list[Any]) -> Made:
    return Made(outcome="empty", reason="nothing was asked")


def recipe(name: str) -> Recipe:
    """A product of parts of one size: a part takes a shard, and never more."""
    n_items = ITEMS_A_PART * PARTS_A_PRODUCT
    items = tuple(f"2024-10-01/light/frame-{k:06d}.fits" for k in range(n_items))
    return Recipe(
        product=f"cube/{name}", inputs=(), settings=None, version=1, job=None, finish=finish,
        items=items, step=step, chunk_items=ITEMS_A_PART, shard_items=ITEMS_A_PART,
    )  # fmt: skip


def bare_bag(client: Client, n_parts: int) -> int:
    """Bags of the same parts, two of them ahead, as one would without us."""
    ahead: deque[list[Any]] = deque()
    for k in range(n_parts // PARTS_A_PRODUCT):
        name = f"bag-{k}-{os.urandom(4).hex()}"
        graph = {(name, i): (nothing, i) for i in range(PARTS_A_PRODUCT)}
        bag = Bag(graph, name, PARTS_A_PRODUCT)
        ahead.append(client.compute(bag.to_delayed(optimize_graph=False)))
        if len(ahead) == 2:
            wait(ahead.popleft())
    for futures in ahead:
        wait(futures)
    return n_parts


def ours(engine: Engine, root: Path, n_parts: int) -> int:
    """Products of the same parts; all tasks count, those that end a product too."""
    recipes = (recipe(f"p{k}") for k in range(n_parts // PARTS_A_PRODUCT))
    return sum(isinstance(event, TaskDone) for event in engine.make(root, recipes))


def spent_ms(run: Callable[[], int], scheduler: int) -> tuple[float, float]:
    """CPU of scheduler and driver a part."""
    before = cpu_s(scheduler), cpu_s(os.getpid())
    n_parts = run()
    after = cpu_s(scheduler), cpu_s(os.getpid())
    return 1e3 * (after[0] - before[0]) / n_parts, 1e3 * (after[1] - before[1]) / n_parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=2000, help="of each run")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"bare bag": [], "nightloom": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with cluster(root / "dask", 2) as (file, scheduler, _), Engine(file) as engine:
            runs = {
                "bare bag": lambda: bare_bag(engine.connected(), given.parts),
                "nightloom": lambda: ours(engine, root / "products", given.parts),
            }
            for k in range(given.rounds + 1):
                for name, run in runs.items():
                    figures = spent_ms(run, scheduler)
                    if k:  # the first warms up
                        found[name].append(figures)
    table = {
        name: {
            "scheduler_ms": median(row[0] for row in rows),
            "driver_ms": median(row[1] for row in rows),
        }
        for name, rows in found.items()
    }
    print(f"{'CPU a part, ms':<16}{'scheduler':>10}{'driver':>10}{'sum':>10}")
    for name, row in table.items():
        cells = [row["scheduler_ms"], row["driver_ms"], sum(row.values())]
        print(f"{name:<16}" + "".join(f"{cell:>10.2f}" for cell in cells))
    if given.json:
        given.json.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    # Its functions must have a name that workers can import.
    import bench_engine

    sys.exit(bench_engine.main())
