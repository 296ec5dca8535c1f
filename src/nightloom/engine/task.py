"""What runs in a worker: one task, its errors as values, its lines and its cost brought home."""

from __future__ import annotations

import json
import logging
import resource
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nightloom.engine.recipe import Failed, Finished, LogLine, Made, Recipe, Rows
from nightloom.errors import NightloomError, TransientError
from nightloom.schema.trace import TaskKind, TaskOutcome, TaskRecord
from nightloom.sky.times import set_offline
from nightloom.store.products import FailureKind, kind_of, publish, write_text

MADE = ".made.json"  # in the work folder: what finish came to, written before it is published
log = logging.getLogger("nightloom")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task came to: a value, or why there is none; with what it logged and cost."""

    value: Any = None
    failure: tuple[FailureKind, str, str] | None = None  # kind, reason, traceback
    lines: tuple[tuple[int, str], ...] = ()
    record: TaskRecord | None = None


@dataclass(frozen=True, slots=True)
class Tag:
    """What the trace says of a task before it runs."""

    product: str
    kind: TaskKind
    n_frames: int
    first_frame: str
    queued_s: float


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


def run_begin(begin: Callable[[Any, Path], None], job: Any, work: Path) -> TaskResult:
    """Lay out a product in its work folder, whole or not at all."""
    return run_task(_begin, begin, job, work)


def _begin(begin: Callable[[Any, Path], None], job: Any, work: Path) -> None:
    # One that died half way left a folder that nobody looks at.
    own = _own_folder(work)
    begin(job, own)
    for artefact in sorted(own.iterdir()):
        try:
            artefact.rename(work / artefact.name)
        except OSError:
            if not (work / artefact.name).exists():
                raise


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
    """Finish and publish; done before by a worker that died before it could say so: said now."""
    note = work / MADE
    if note.exists():
        data = json.loads(note.read_text(encoding="utf-8"))
        folder = work / data.pop("folder")
        made = Made(**{**data, "caveats": tuple(data["caveats"])})
    else:
        laid_out = any(work.glob(f"{kind_of(product)}.*"))
        folder = work if laid_out else _own_folder(work)
        made = finish(job, folder, results)
        place = str(folder.relative_to(work))
        write_text(note, json.dumps(asdict(made) | {"folder": place}))
    if made.outcome == "done":
        publish(root, product, fingerprint, folder)
    return made


def _own_folder(work: Path) -> Path:
    """A folder that no other try of the same task writes to."""
    folder = work / uuid.uuid4().hex[:8]
    folder.mkdir()
    return folder


def run_alone(marker: Path, function: Callable[..., TaskResult], *args: Any) -> TaskResult:
    """Run a task whose workers died before; the marker grows a byte each time it dies here."""
    try:
        with marker.open("ab") as file:
            file.write(b"x")
    except OSError as error:
        raise TransientError(where=str(marker), why=f"can't be written: {error}") from error
    try:
        return function(*args)
    finally:
        marker.unlink(missing_ok=True)


def deaths_of(marker: Path) -> int:
    """How often a process died while it ran the task of this marker."""
    try:
        return len(marker.read_bytes())
    except OSError:
        return 0


def traced(
    tag: Tag, worker: str, tell: Callable[[TaskRecord], None],
    function: Callable[..., TaskResult], *args: Any,
) -> TaskResult:  # fmt: skip
    """A task with what it cost told: CPU and bytes read are those of the process meanwhile.

    Bytes read are what was asked of the system by read(), from disk or its cache (`rchar`).
    """
    started_s, before = time.time(), _meter()
    outcome: TaskOutcome = "retried"
    try:
        result = function(*args)
        outcome = "failed" if result.failure is not None else "done"
    finally:
        seconds, cpu_s, n_bytes = (b - a for a, b in zip(before, _meter(), strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cost = (started_s, seconds, cpu_s, int(n_bytes), peak)
        tell(
            TaskRecord(
                tag.product,
                tag.kind,
                tag.n_frames,
                tag.first_frame,
                worker,
                _host(),
                tag.queued_s,
                *cost,
                outcome,
            )
        )
    return result


def _meter() -> tuple[float, float, float]:
    """Seconds, CPU seconds and bytes read of this process."""
    return time.perf_counter(), time.process_time(), _bytes_read()


def _bytes_read() -> int:
    try:
        with open("/proc/self/io", "rb", buffering=0) as file:  # noqa: PTH123 - of every task
            return int(file.read(32).split()[1])
    except (OSError, ValueError, IndexError):
        return 0  # not on Linux


@lru_cache(maxsize=1)
def _host() -> str:
    return socket.gethostname()


def tag_of(recipe: Recipe, kind: TaskKind, first: int = 0, last: int = 0) -> Tag:
    """The tag of a task that is handed out now."""
    items = recipe.items[first:last]
    name = frame_name(items[0]) if items else ""
    return Tag(recipe.product, kind, len(items), name, time.time())


def tag_of_chunk(product: str, kind: TaskKind, chunk: Any) -> Tag:
    """The tag of one chunk of a map, which is handed out now."""
    items = chunk if isinstance(chunk, list) else [chunk]
    return Tag(product, kind, len(items), frame_name(items[0]) if items else "", time.time())


def frame_name(item: Any) -> str:
    """The path of an item's frame, as far as the engine can know it."""
    frame = getattr(item, "frame", item)
    path = getattr(frame, "path", "")
    return path if isinstance(path, str) else ""


def lost_record(tag: Tag) -> TaskRecord:
    """The record of a task that died with its workers: nobody knows what it cost."""
    return TaskRecord(
        tag.product, tag.kind, tag.n_frames, tag.first_frame, "", "", tag.queued_s,
        tag.queued_s, 0.0, 0.0, 0, 0, "killed",
    )  # fmt: skip


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


def lines_of(product: str, result: TaskResult) -> Iterator[LogLine]:
    """What a task logged, as events."""
    for level, text in result.lines:
        yield LogLine(product, level, text)
