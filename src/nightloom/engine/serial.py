"""Recipes one after the other in this process: the runner without a cluster."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nightloom.engine.recipe import Event, ItemsDone, Recipe, Started, TaskDone
from nightloom.engine.task import (
    Tag,
    TaskResult,
    conclude,
    lines_of,
    partitions,
    run_begin,
    run_finish,
    run_pack,
    run_step,
    run_task,
    tag_of,
    tag_of_chunk,
    traced,
)
from nightloom.errors import TransientError
from nightloom.schema.trace import TaskKind, TaskRecord
from nightloom.store.products import work_folder


def make_serial(root: Path, recipes: Iterable[Recipe]) -> Iterator[Event]:
    """Make products one after the other."""
    for recipe in recipes:
        started = time.perf_counter()
        yield Started(recipe.product, len(recipe.items))
        try:
            with work_folder(root, recipe.product) as work:
                result = yield from _make(root, recipe, work)
        except (TransientError, OSError) as error:
            result = TaskResult(failure=("transient", str(error), traceback.format_exc()))
        yield conclude(recipe, result, time.perf_counter() - started)


def map_serial(
    function: Callable[[Any], Any], chunks: Iterable[Any], *, kind: TaskKind, product: str
) -> Iterator[TaskResult]:
    """A function over chunks, one after the other."""
    for chunk in chunks:
        told: list[TaskRecord] = []
        tag = tag_of_chunk(product, kind, chunk)
        result = traced(tag, _here(), told.append, run_task, function, chunk)
        yield replace(result, record=told[0])


def _make(root: Path, recipe: Recipe, work: Path) -> Generator[Event, None, TaskResult]:
    results: list[TaskResult] = []
    if recipe.begin is not None:
        tag = tag_of(recipe, "begin")
        result = yield from _run(tag, run_begin, recipe.begin, recipe.job, work)
        if result.failure is not None:
            return result
    shards: dict[int, list[TaskResult]] = {}
    starts: dict[int, int] = {}
    cuts = partitions(
        len(recipe.items), chunk_items=recipe.chunk_items, shard_items=recipe.shard_items
    )
    for shard, first, last in cuts:
        if recipe.step is None:
            break
        tag = tag_of(recipe, "step", first, last)
        part = yield from _run(tag, run_step, recipe.step, recipe.job, recipe.items[first:last])
        starts.setdefault(shard, first)
        shards.setdefault(shard, []).append(part)
        yield ItemsDone(recipe.product, last - first)
    for shard, parts in shards.items():
        if recipe.pack is None:
            results += parts
        else:
            tag = tag_of(recipe, "pack")
            packed = yield from _run(
                tag, run_pack, recipe.pack, recipe.job, work, starts[shard], parts
            )
            results.append(packed)
    tag = tag_of(recipe, "finish")
    result = yield from _run(
        tag, run_finish, root, recipe.product, recipe.fingerprint, recipe.finish, recipe.job, work,
        results,
    )  # fmt: skip
    yield from lines_of(recipe.product, result)
    return result


def _run(tag: Tag, *call: Any) -> Generator[Event, None, TaskResult]:
    """One task here and now; its record as an event."""
    told: list[TaskRecord] = []
    try:
        result = traced(tag, _here(), told.append, *call)
    except TransientError:
        yield from (TaskDone(tag.product, record) for record in told)
        raise
    yield from (TaskDone(tag.product, record) for record in told)
    return result


def _here() -> str:
    return f"pid {os.getpid()}"
