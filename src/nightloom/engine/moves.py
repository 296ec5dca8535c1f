"""What the window is told and what it says: products, tasks and their ends, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["begin", "step", "pack", "finish"]
Ending = Literal["done", "failed", "killed", "lost"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the window must know of a recipe; chunk_items is a first guess of a second's work."""

    product: str
    n_items: int
    chunk_items: int
    shard_items: int
    packs: bool
    quarantines: bool


@dataclass(frozen=True, slots=True)
class Task:
    """Items first to last - 1 of a product; `tries` counts how often its workers died before."""

    product: str
    kind: TaskKind
    first: int = 0
    last: int = 0
    round: int = 0
    tries: int = 0

    @property
    def n_items(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class ProductAdded:
    shape: Shape


@dataclass(frozen=True, slots=True)
class NoMoreProducts:
    pass


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    n_workers: int


@dataclass(frozen=True, slots=True)
class TaskTimed:
    task: Task
    seconds: float


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """deaths: how often a process died while it ran this task, as far as is known.

    failed: raised after all retries; killed: its workers died; lost: what it needs was killed.
    """

    task: Task
    how: Ending
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    product: str


@dataclass(frozen=True, slots=True)
class Submit:
    """needs: the tasks whose results it takes, in order."""

    task: Task
    needs: tuple[Task, ...] = ()


@dataclass(frozen=True, slots=True)
class GiveUp:
    task: Task


@dataclass(frozen=True, slots=True)
class Progress:
    product: str
    n_items: int


@dataclass(frozen=True, slots=True)
class Release:
    """Results that nobody needs any more."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """All tasks of a product and what it wrote so far: it is begun again."""

    product: str


@dataclass(frozen=True, slots=True)
class Conclude:
    """task: the one that ended it; the others are of no use any more."""

    product: str
    task: Task
    how: Ending


Input = ProductAdded | NoMoreProducts | WorkersChanged | TaskTimed | TaskEnded
Output = Start | Submit | GiveUp | Progress | Release | Drop | Conclude
