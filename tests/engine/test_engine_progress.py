"""The fold of a run's events against the ledger on disk, event by event."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from nightloom.engine.cluster import SERIAL, Engine
from nightloom.engine.progress import (
    Board,
    Detail,
    FrameTable,
    frames_per_s,
    state_of,
    take,
)
from nightloom.engine.recipe import (
    Event,
    Failed,
    Finished,
    ItemsDone,
    Made,
    Recipe,
    Started,
)
from nightloom.store.ledger import Expected, Line, ledger, read_line
from nightloom.store.products import Attempt, write_attempt
from toys import recipe


def expected_of(recipes: list[Recipe]) -> list[Expected]:
    return [Expected(r.product, r.fingerprint, r.needs, r.uses) for r in recipes]


def on_disk(root: Path, event: Event) -> None:
    """The attempt of an event, as a run writes it."""
    if isinstance(event, Finished):
        made = event.made
        attempt = Attempt(
            event.fingerprint, made.outcome, reason=made.reason, caveats=made.caveats,
            n_items=event.n_items, n_quarantined=made.n_quarantined,
        )  # fmt: skip
        write_attempt(root, event.product, attempt)
    if isinstance(event, Failed):
        attempt = Attempt(event.fingerprint, "failed", event.kind, event.reason)
        write_attempt(root, event.product, attempt)


def test_states_are_those_of_the_ledger_after_every_event(tmp_path: Path) -> None:
    first, bad = recipe("a"), recipe("b", fail="step")
    recipes = [
        replace(recipe("e"), needs=("cube/b",)),  # before what it needs: the order is no matter
        first,
        bad,
        replace(recipe("c"), needs=("cube/a",)),
        replace(recipe("d"), needs=("cube/c",), uses=("cube/b",)),
    ]
    expected = expected_of(recipes)
    board = Board(lines={item.product: read_line(tmp_path, item) for item in expected})
    with Engine(SERIAL) as engine:
        for event in engine.make(tmp_path, [first, bad, recipes[3], recipes[4]]):
            on_disk(tmp_path, event)
            take(board, event, 1000.0)
            if not isinstance(event, Started | Finished | Failed):
                continue
            table = ledger(tmp_path, expected)
            told = state_of(board, 1000.0)
            counts = table["state"].value_counts().to_dict()
            assert {k: n for k, n in told["products"]["cube"].items() if n} == counts
            running = [row["product"] for row in told["running"]]
            assert running == ([event.product] if isinstance(event, Started) else [])
    states = table.set_index("product")["state"].to_dict()
    assert states == {"cube/a": "done", "cube/b": "failed", "cube/c": "done", "cube/d": "done",
                      "cube/e": "blocked"}  # fmt: skip
    troubled = {row["product"]: row["state"] for row in told["troubled"]}
    assert troubled == {"cube/b": "failed", "cube/e": "blocked"}


def cube(name: str, **more: object) -> Line:
    return Line(Expected(f"cube/F/{name}", "f"), "", None, **more)  # type: ignore[arg-type]


def test_rate_and_time_left() -> None:
    lines = {f"cube/F/n{k}/R": cube(f"n{k}/R") for k in range(3)}
    board = Board(lines=lines, planned=dict.fromkeys(lines, 100))
    assert state_of(board, 0.0)["left_s"] is None
    take(board, Started("cube/F/n0/R", 100), 1000.0)
    for k in range(10):
        take(board, ItemsDone("cube/F/n0/R", 5), 1001.0 + k)
    state = state_of(board, 1010.0)
    assert state["frames_per_s"] == pytest.approx(5.0)
    assert state["run_frames"] == {"done": 50, "left": 250}
    assert state["left_s"] == pytest.approx(50.0)
    assert state["running"][0]["frames_done"] == 50
    # A product that starts again gives its frames back.
    take(board, ItemsDone("cube/F/n0/R", -50), 1011.0)
    assert state_of(board, 1011.0)["run_frames"] == {"done": 0, "left": 300}
    assert frames_per_s(board, 5000.0) is None  # nothing came for two minutes


def test_a_night_is_as_its_most_urgent_product() -> None:
    lines = {f"cube/F/2024-01-0{k}/{name}": cube(f"2024-01-0{k}/{name}")
             for k in range(1, 5) for name in "RV"}  # fmt: skip
    board = Board(lines=lines, planned=dict.fromkeys(lines, 10))
    made = Made(caveats=("2 of 10 frames quarantined",), n_quarantined=2)
    take(board, Started("cube/F/2024-01-01/R", 10), 0.0)
    for product, event_made in (("01/V", Made()), ("02/R", made), ("02/V", Made())):
        take(board, Finished(f"cube/F/2024-01-{product}", "f", event_made, 1.0, 10), 0.0)
    for product in ("03/R", "03/V"):
        take(board, Finished(f"cube/F/2024-01-{product}", "f", Made("empty", "x"), 1.0, 10), 0.0)
    take(board, Failed("cube/F/2024-01-04/R", "f", "bug", "KeyError", "", 1.0, 10), 0.0)
    board.details["cube/F/2024-01-02/R"] = Detail(8, 2, lost=(("a.fits", "trailed"),) * 2)
    calendar = state_of(board, 1.0)["calendar"]
    assert calendar["night"] == [f"2024-01-0{k}" for k in range(1, 5)]
    assert calendar["state"] == ["running", "caveats", "empty", "failed"]
    assert calendar["quarantined"] == [0, 2, 0, 0]
    assert state_of(board, 1.0)["quarantined"] == [
        {"where": "cube/F/2024-01-02/R", "reason": "trailed", "n": 2, "path": "a.fits"}
    ]


def test_frames_are_counted_once_and_lists_are_bounded() -> None:
    rng = random.Random(1)
    board = Board(frames=FrameTable(900, 60, 7, 3, (("bad.fits", "no exposure time"),)))
    for k in range(500):
        product = f"cube/F/{2000 + k // 300}-{1 + k // 28 % 12:02d}-{1 + k % 28:02d}/R{k}"
        board.lines[product] = Line(
            Expected(product, "f"), "", Attempt("f", "failed", "product", f"{k}")
        )
        board.details[product] = Detail(1, 0, lost=((f"{k}.fits", rng.choice("abc")),))
    state = state_of(board, 0.0)
    assert state["frames"] == {"measured": 500, "used": 0, "unused": 60, "pending": 400,
                               "quarantined": 7, "unreadable": 3}  # fmt: skip
    assert len(state["troubled"]) == len(state["quarantined"]) == 200
    json.dumps(state, allow_nan=False)
