"""What a run came to so far: a fold of its events over the ledger that it began with, no I/O.

The states are the ledger's, by the ledger's own rule, so the two agree at any time; what runs
just now is told beside them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nightloom.engine.recipe import Event, Failed, Finished, ItemsDone, Started
from nightloom.store.ledger import STATES, Expected, Line, Standing, standings
from nightloom.store.products import Attempt, kind_of

RATE_WINDOW_S = 120.0
MOST_ROWS = 200  # of a list that is shown; how many there are is told
MOST_PRODUCTS = 12  # named of one night
# A night is as its most urgent product is.
URGENCY = ("running", "failed", "blocked", "stale", "waiting", "caveats", "empty", "done")
AT_LENGTH = ("calendar", "masters")  # what of a state grows with the archive
TROUBLED = ("failed", "blocked", "empty")


@dataclass(frozen=True, slots=True)
class Listed(Event):
    """A stage came to a product: what it is to be made of, as things stand."""

    item: Expected


@dataclass(frozen=True, slots=True)
class MasterNumbers:
    """A published master in numbers: medians over its pixels, and how many are bad."""

    image_type: str
    series: str  # masters of one camera, exposure and filter are of one series
    level_adu: float
    noise: float
    n_bad: int
    n_frames: int


@dataclass(frozen=True, slots=True)
class Detail:
    """What lies in a published product: frames by what became of them, and why."""

    n_measured: int = 0
    n_lost: int = 0
    n_used: int = 0
    lost: tuple[tuple[str, str], ...] = ()  # path and reason
    master: MasterNumbers | None = None


@dataclass(frozen=True, slots=True)
class FrameTable:
    """The frame table in counts: science and unknown frames, those of masters, and the lost."""

    n_science: int = 0
    n_calibration: int = 0
    n_quarantined: int = 0
    n_unreadable: int = 0
    lost: tuple[tuple[str, str], ...] = ()  # path and reason


@dataclass(slots=True)
class Flight:
    """A product that is being made."""

    started_s: float
    n_items: int
    n_done: int = 0


@dataclass(slots=True)
class Board:
    """The expected products with what became of them; owned and changed by one thread."""

    frames: FrameTable = FrameTable()
    planned: Mapping[str, int] = field(default_factory=dict)  # cube -> its science frames
    lines: dict[str, Line] = field(default_factory=dict)
    details: dict[str, Detail] = field(default_factory=dict)
    running: dict[str, Flight] = field(default_factory=dict)
    n_frames_done: int = 0
    first_frame_s: float = float("nan")
    ticks: deque[tuple[float, int]] = field(default_factory=deque)  # when, frames


def take(board: Board, event: Event, now_s: float) -> None:
    """Take in an event; now_s: seconds since 1970 at which it came."""
    product = event.product
    match event:
        case Started(n_items=n):
            board.running[product] = Flight(now_s, n)
            if kind_of(product) == "cube" and board.first_frame_s != board.first_frame_s:
                board.first_frame_s = now_s
        case ItemsDone(n_items=n):
            if product in board.running:
                board.running[product].n_done += n
            if kind_of(product) == "cube":
                board.n_frames_done += n
                board.ticks.append((now_s, n))
        case Finished(fingerprint=fingerprint, made=made, n_items=n):
            board.running.pop(product, None)
            attempt = Attempt(
                fingerprint, made.outcome, reason=made.reason, caveats=made.caveats,
                n_items=n, n_quarantined=made.n_quarantined, n_killed=made.n_killed,
            )  # fmt: skip
            _tried(board, product, attempt)
        case Failed(fingerprint=fingerprint, kind=kind, reason=reason):
            board.running.pop(product, None)
            _tried(board, product, Attempt(fingerprint, "failed", kind, reason))


def _tried(board: Board, product: str, attempt: Attempt) -> None:
    line = board.lines.get(product) or Line(Expected(product, attempt.fingerprint), "", None)
    published = attempt.fingerprint if attempt.outcome == "done" else line.published
    # What was made is what was expected of it when its stage came.
    item = replace(line.item, fingerprint=attempt.fingerprint)
    board.lines[product] = Line(item, published, attempt)


def state_of(board: Board, now_s: float) -> dict[str, Any]:
    """The state as JSON will have it: in short, with every night, and the masters."""
    found = standings(board.lines.values())
    nights = _nights(board, found)
    at_length = dict(zip(AT_LENGTH, (nights, _masters(board)), strict=True))
    return _summary(board, found, nights, now_s) | at_length


def _summary(
    board: Board, found: Mapping[str, Standing], nights: dict[str, list[Any]], now_s: float
) -> dict[str, Any]:
    left = _frames_left(board, found)
    rate = frames_per_s(board, now_s)
    return {
        "as_of_s": round(now_s, 1),
        "products": _products(found),
        "frames": frame_counts(board, found),
        "nights": {
            "done": sum(state in ("done", "caveats", "empty") for state in nights["state"]),
            "total": len(nights["night"]),
        },
        "run_frames": {"done": board.n_frames_done, "left": left},
        "frames_per_s": rate,
        "left_s": left / rate if rate else None,
        "running": [
            {
                "product": product,
                "frames": flight.n_items,
                "frames_done": flight.n_done,
                "seconds": round(now_s - flight.started_s, 1),
            }
            for product, flight in list(board.running.items())[:MOST_ROWS]
        ],
        "troubled": _troubled(found),
        "quarantined": _quarantined(board),
    }


def frame_counts(board: Board, found: Mapping[str, Standing]) -> dict[str, int]:
    """Frames by state, as `Archive.frames` has them."""
    table = board.frames
    details = [board.details[product] for product in found if product in board.details]
    measured = sum(detail.n_measured for detail in details)
    lost = sum(detail.n_lost for detail in details)
    used = sum(detail.n_used for detail in details)
    return {
        "measured": measured,
        "used": used,
        "unused": max(0, table.n_calibration - used),
        "pending": max(0, table.n_science - measured - lost),
        "quarantined": table.n_quarantined + lost,
        "unreadable": table.n_unreadable,
    }


def frames_per_s(board: Board, now_s: float) -> float | None:
    """Science frames a second over the last two minutes; None before there is one."""
    while board.ticks and board.ticks[0][0] < now_s - RATE_WINDOW_S:
        board.ticks.popleft()
    n = sum(n for _, n in board.ticks)
    since = now_s - max(board.first_frame_s, now_s - RATE_WINDOW_S)
    return round(n / since, 3) if n > 0 and since > 0 else None


def _frames_left(board: Board, found: Mapping[str, Standing]) -> int:
    left = 0
    for product, n in board.planned.items():
        flight = board.running.get(product)
        if flight is not None:
            left += max(0, n - flight.n_done)
        elif product in found and found[product].state in ("waiting", "stale"):
            left += n
    return left


def _products(found: Mapping[str, Standing]) -> dict[str, dict[str, int]]:
    counts = Counter((kind_of(product), standing.state) for product, standing in found.items())
    there = {state for _, state in counts}
    kinds = dict.fromkeys(kind for kind, _ in counts)
    return {kind: {s: counts[kind, s] for s in STATES if s in there} for kind in kinds}


def _nights(board: Board, found: Mapping[str, Standing]) -> dict[str, list[Any]]:
    """The nights in columns: the most urgent state of a night's cubes, frames, what they are."""
    cubes: dict[str, list[str]] = {}
    for product in found:
        if kind_of(product) == "cube" and product.count("/") == 3:
            cubes.setdefault(product.split("/")[2], []).append(product)
    names = ("night", "state", "frames", "measured", "quarantined", "products")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for night in sorted(cubes):
        states = {product: _shown(board, product, found[product]) for product in cubes[night]}
        details = [board.details.get(product, Detail()) for product in states]
        row = (
            night,
            _most_urgent(set(states.values())),
            sum(board.planned.get(product, 0) for product in states),
            sum(detail.n_measured for detail in details),
            sum(detail.n_lost for detail in details),
            [
                f"{product.split('/')[1]} {product.split('/')[3]}: {state}"
                + (f", {found[product].reason}" if state in TROUBLED else "")
                for product, state in list(states.items())[:MOST_PRODUCTS]
            ],
        )
        for name, value in zip(names, row, strict=True):
            columns[name].append(value)
    return columns


def _shown(board: Board, product: str, standing: Standing) -> str:
    if product in board.running:
        return "running"
    return "caveats" if standing.state == "done" and standing.caveats else standing.state


def _most_urgent(states: set[str]) -> str:
    if states == {"done", "empty"}:
        return "caveats"
    return next(state for state in URGENCY if state in states)


def _troubled(found: Mapping[str, Standing]) -> list[dict[str, Any]]:
    """Failed, blocked and empty products; those of one reason together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for product, standing in found.items():
        if standing.state in TROUBLED:
            groups.setdefault((standing.state, standing.reason), []).append(product)
    rows = sorted(groups.items(), key=lambda group: TROUBLED.index(group[0][0]))
    return [
        {"state": state, "reason": reason, "n": len(products), "product": products[0]}
        for (state, reason), products in rows[:MOST_ROWS]
    ]


def _quarantined(board: Board) -> list[dict[str, Any]]:
    """Why frames are quarantined, those of one place and reason together, the last first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for product, detail in board.details.items():
        for path, reason in detail.lost:
            groups.setdefault((product, reason), []).append(path)
    for path, reason in board.frames.lost:
        groups.setdefault(("headers", reason), []).append(path)
    rows = sorted(groups.items(), key=lambda group: group[0][0].split("/")[-2:], reverse=True)
    return [
        {"where": where, "reason": reason, "n": len(paths), "path": paths[0]}
        for (where, reason), paths in rows[:MOST_ROWS]
    ]


def _masters(board: Board) -> dict[str, list[Any]]:
    """The masters' numbers in columns, in order of night."""
    names = ("product", "night", "image_type", "series", "level_adu", "noise", "n_bad", "frames")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    rows = []
    for product, detail in board.details.items():
        numbers = detail.master
        if numbers is not None:
            night = night_of_master(product)
            rows.append(
                (
                    product, night, numbers.image_type, numbers.series,
                    _finite(numbers.level_adu), _finite(numbers.noise), numbers.n_bad,
                    numbers.n_frames,
                )
            )  # fmt: skip
    for row in sorted(rows, key=lambda row: (row[1], row[0])):
        for name, value in zip(names, row, strict=True):
            columns[name].append(value)
    return columns


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def night_of_master(product: str) -> str:
    """The night in a master's id; empty if there is none."""
    parts = product.split("_")
    return next((p for p in parts if len(p) == 10 and p[4] == p[7] == "-"), "")
