"""What a recipe's tasks are on a worker, and what its product comes to on the driver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed.protocol.pickle import loads

from nightloom.engine import moves as m
from nightloom.engine.futures import on_worker
from nightloom.engine.recipe import Failed, Finished, Recipe
from nightloom.engine.task import TaskResult, run_begin, run_finish, run_pack, run_step

REASON_LOST = "the worker that measured it died every time (memory, or a crash)"
RETRY = "nightloom retry --failed tries them again"


def with_killed(end: Finished | Failed, n_killed: int) -> Finished | Failed:
    """The end of a product some of whose items were given up: it says so."""
    if not n_killed or isinstance(end, Failed):
        return end
    caveat = f"{n_killed} frames killed their workers: {RETRY}"
    made = replace(end.made, n_killed=n_killed, caveats=(*end.made.caveats, caveat))
    return replace(end, made=made)


def lost_row(recipe: Recipe, task: m.Task) -> Any:
    """The row of an item that was given up."""
    assert recipe.lost is not None
    return recipe.lost(recipe.job, recipe.items[task.first], REASON_LOST)


def shape_of(recipe: Recipe) -> m.Shape:
    """What the window must know of a recipe."""
    n_items = len(recipe.items) if recipe.step is not None else 0
    return m.Shape(
        recipe.product, n_items, recipe.chunk_items, recipe.shard_items,
        packs=recipe.pack is not None, quarantines=recipe.lost is not None,
    )  # fmt: skip


def call_of(
    root: Path, recipe: Recipe, task: m.Task, work: Path, results: list[Any]
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


def on_worker_step(common: bytes, part: bytes) -> TaskResult:
    """One part in a worker, from the pickles of what a product's parts share and of its own."""
    topic, step, job = loads(common)
    number, tag, items = loads(part)
    return on_worker(topic, number, tag, run_step, step, job, items)
