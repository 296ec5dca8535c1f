"""Recipe: what a product is made of and how; and its events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nightloom.schema.trace import TaskRecord
from nightloom.store.fingerprint import fingerprint
from nightloom.store.products import FailureKind, Outcome, kind_of

Rows = list[Any]


@dataclass(frozen=True, slots=True)
class Made:
    """What finishing a product came to."""

    outcome: Outcome = "done"
    reason: str = ""
    caveats: tuple[str, ...] = ()
    n_quarantined: int = 0
    n_killed: int = 0  # of these, items whose workers died; the driver counts them


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
class Outline:
    """What tells of a recipe whether its product is due, and nothing a frame.

    write() gives the recipe itself, whose fingerprint is this one.
    """

    product: str
    fingerprint: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    write: Callable[[], Recipe]


def written(recipe: Recipe | Outline) -> Recipe:
    """The recipe itself."""
    return recipe.write() if isinstance(recipe, Outline) else recipe


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
