"""The trace of a run: one row a task, where the time went; its columns and the record of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["scan", "verify", "begin", "step", "pack", "finish"]
TaskOutcome = Literal["done", "failed", "retried", "killed"]


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task as it was seen: times in seconds (UTC, since 1970), memory and reads in bytes.

    peak_bytes is the high-water mark of the process, so it never falls while a worker lives.
    """

    product: str
    kind: TaskKind
    n_frames: int
    first_frame: str  # path of its first frame; "" for a task without frames
    worker: str
    host: str
    queued_s: float  # handed to the scheduler
    started_s: float
    seconds: float
    cpu_s: float
    bytes_read: int
    peak_bytes: int
    outcome: TaskOutcome


COLUMNS: tuple[str, ...] = tuple(TaskRecord.__dataclass_fields__)
