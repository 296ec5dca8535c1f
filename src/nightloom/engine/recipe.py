"""Recipe: what a product is made of and how; its events; and the runner without a cluster."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nightloom.errors import NightloomError, TransientError
from nightloom.schema.trace import TaskRecord
from nightloom.sky.times import set_offline
from nightloom.store.fingerprint import fingerprint
from nightloom.store.products import FailureKind, Outcome, kind_of, publish, work_folder

Rows = list[Any]
log = logging.getLogger("nightloom")


@dataclass(frozen=True, slots=True)
class Made:
    """What finishing a product came to."""

    outcome: Outcome = "done"
    reason: str = ""
    caveats: tuple[str, ...] = ()
    n_quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A product in the making; holds paths and settings, never arrays.

    step(job, items) -> a small row an item, in order; pack(job, work, start, rows) writes one
    whole shard of `shard_items` rows and returns what finish needs of them; finish(job, work,
    results) completes what lies in `work`. lost(job, item, reason) is the row of an item that
    kills its worker.
    """

    product: str
    inputs: tuple[tuple[str, str], ...]
    settings: BaseModel | None
    version: int
    job: Any
    finish: Callable[[Any, Path, list[Any]], Made]
    needs: tuple[str, ...] = ()  # products without which it can't be made
    uses: tuple[str, ...] = ()  # products that it uses where they are there
    items: tuple[Any, ...] = ()
    step: Callable[[Any, tuple[Any, ...]], Rows] | None = None
    pack: Callable[[Any, Path, int, Rows], Any] | None = None
    lost: Callable[[Any, Any, str], Any] | None = None
    begin: Callable[[Any, Path], None] | None = None
    shard_items: int = 1 << 30
    chunk_items: int = 8
    peak_bytes: int = 0

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            inputs=self.inputs,
            settings=self.settings,
            version=self.version,
            kind=kind_of(self.product),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a product."""

    product: str


@dataclass(frozen=True, slots=True)
class Started(Event):
    n_items: int


@dataclass(frozen=True, slots=True)
class ItemsDone(Event):
    n_items: int


@dataclass(frozen=True, slots=True)
class TaskDone(Event):
    """A task came to an end; for the trace."""

    record: TaskRecord


@dataclass(frozen=True, slots=True)
class Finished(Event):
    fingerprint: str
    made: Made
    seconds: float
    n_items: int


@dataclass(frozen=True, slots=True)
class Failed(Event):
    fingerprint: str
    kind: FailureKind
    reason: str
    detail: str
    seconds: float
    n_items: int


@dataclass(frozen=True, slots=True)
class LogLine(Event):
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task came to: a value, or why there is none; with what it logged."""

    value: Any = None
    failure: tuple[FailureKind, str, str] | None = None  # kind, reason, traceback
    lines: tuple[tuple[int, str], ...] = ()


class _Lines(logging.Handler):
    """Keeps what one task logs, to travel home with its result."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))


def run_task(function: Callable[..., Any], *args: Any) -> TaskResult:
    """Call a function in a worker; an error becomes a value, but a transient one is raised.

    So the scheduler retries what may succeed next time, and nothing else.
    """
    set_offline()
    handler = _Lines()
    log.addHandler(handler)
    try:
        value = function(*args)
    except TransientError:
        raise
    except OSError as error:
        # What storage did to one task may not happen to the next.
        where = str(error.filename or "storage")
        raise TransientError(
            where=where, why=error.strerror or str(error), do="check the disk, then run again"
        ) from error
    except NightloomError as error:
        return TaskResult(
            failure=("product", str(error), traceback.format_exc()),
            lines=tuple(handler.lines),
        )
    except Exception as error:  # noqa: BLE001 - a bug in one product must not end the others
        why = f"{type(error).__name__}: {error}"
        return TaskResult(
            failure=("bug", why, traceback.format_exc()),
            lines=tuple(handler.lines),
        )
    finally:
        log.removeHandler(handler)
    return TaskResult(value=value, lines=tuple(handler.lines))


def run_step(recipe_step: Callable[..., Rows], job: Any, items: tuple[Any, ...]) -> TaskResult:
    """One partition: its items measured, as many rows out as items in."""
    return run_task(_counted, recipe_step, job, items)


def _counted(step: Callable[..., Rows], job: Any, items: tuple[Any, ...]) -> Rows:
    rows = step(job, items)
    if len(rows) != len(items):
        raise RuntimeError(f"{len(items)} items in, {len(rows)} rows out")
    return rows


def run_pack(
    pack: Callable[..., Any], job: Any, work: Path, start: int, parts: list[TaskResult]
) -> TaskResult:
    """One whole shard from the rows of its partitions."""
    failed = _first_failure(parts)
    if failed is not None:
        return failed
    rows = [row for part in parts for row in part.value]
    return _with_lines_of(parts, run_task(pack, job, work, start, rows))


def run_finish(
    root: Path, product: str, fingerprint: str, finish: Callable[..., Made], job: Any, work: Path,
    results: list[TaskResult],
) -> TaskResult:  # fmt: skip
    """Complete and publish a product."""
    failed = _first_failure(results)
    if failed is not None:
        return failed
    values = [part.value for part in results]
    made = run_task(_finish, root, product, fingerprint, finish, job, work, values)
    return _with_lines_of(results, made)


def _first_failure(parts: Sequence[TaskResult]) -> TaskResult | None:
    failed = next((part for part in parts if part.failure), None)
    return None if failed is None else _with_lines_of(parts, TaskResult(failure=failed.failure))


def _with_lines_of(parts: Sequence[TaskResult], result: TaskResult) -> TaskResult:
    before = tuple(line for part in parts for line in part.lines)
    return replace(result, lines=before + result.lines)


def _finish(
    root: Path, product: str, fingerprint: str, finish: Callable[..., Made], job: Any, work: Path,
    results: list[Any],
) -> Made:  # fmt: skip
    made = finish(job, work, results)
    if made.outcome == "done":
        publish(root, product, fingerprint, work)
    return made


def partitions(n_items: int, *, chunk_items: int, shard_items: int) -> list[tuple[int, int, int]]:
    """(shard, first, last + 1) of each partition; none crosses a shard."""
    cuts: list[tuple[int, int, int]] = []
    for shard, first in enumerate(range(0, n_items, shard_items)):
        end = min(first + shard_items, n_items)
        cuts += [(shard, a, min(a + chunk_items, end)) for a in range(first, end, chunk_items)]
    return cuts


def conclude(recipe: Recipe, result: TaskResult, seconds: float) -> Finished | Failed:
    """The last event of a product."""
    n = len(recipe.items)
    if result.failure is not None:
        kind, reason, detail = result.failure
        return Failed(recipe.product, recipe.fingerprint, kind, reason, detail, seconds, n)
    return Finished(recipe.product, recipe.fingerprint, result.value, seconds, n)


def make_serial(root: Path, recipes: Sequence[Recipe]) -> Iterator[Event]:
    """Make products one after the other in this process: the runner without a cluster."""
    for recipe in recipes:
        started = time.perf_counter()
        yield Started(recipe.product, len(recipe.items))
        try:
            with work_folder(root, recipe.product) as work:
                result = yield from _serial(root, recipe, work)
        except (TransientError, OSError) as error:
            result = TaskResult(failure=("transient", str(error), traceback.format_exc()))
        yield conclude(recipe, result, time.perf_counter() - started)


def _serial(root: Path, recipe: Recipe, work: Path) -> Generator[Event, None, TaskResult]:
    results: list[TaskResult] = []
    if recipe.begin is not None:
        recipe.begin(recipe.job, work)
    shards: dict[int, list[TaskResult]] = {}
    starts: dict[int, int] = {}
    cuts = partitions(
        len(recipe.items), chunk_items=recipe.chunk_items, shard_items=recipe.shard_items
    )
    for shard, first, last in cuts:
        if recipe.step is None:
            break
        part = run_step(recipe.step, recipe.job, recipe.items[first:last])
        starts.setdefault(shard, first)
        shards.setdefault(shard, []).append(part)
        yield ItemsDone(recipe.product, last - first)
    for shard, parts in shards.items():
        if recipe.pack is None:
            results += parts
        else:
            results.append(run_pack(recipe.pack, recipe.job, work, starts[shard], parts))
    result = run_finish(
        root, recipe.product, recipe.fingerprint, recipe.finish, recipe.job, work, results
    )
    yield from lines_of(recipe.product, result)
    return result


def lines_of(product: str, result: TaskResult) -> Iterator[LogLine]:
    """What a task logged, as events."""
    for level, text in result.lines:
        yield LogLine(product, level, text)
