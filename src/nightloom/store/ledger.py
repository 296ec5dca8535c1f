"""The ledger: every expected product with its state, read off products and attempts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from nightloom.store.products import kind_of, published_fingerprint, read_attempt
from nightloom.store.tables import read_table, write_table

State = Literal["done", "empty", "waiting", "blocked", "failed", "stale"]
STATES: tuple[State, ...] = ("done", "empty", "waiting", "blocked", "failed", "stale")
PLAN = "plan.parquet"
COLUMNS = ["product", "fingerprint", "needs", "uses", "note"]


@dataclass(frozen=True, slots=True)
class Expected:
    """A product that the plan wants: its fingerprint as things stand, and what it is made of."""

    product: str
    fingerprint: str
    needs: tuple[str, ...] = ()  # without them it is blocked
    uses: tuple[str, ...] = ()  # it waits for them, and does without if they fail
    note: str = ""  # what the plan chose and what is missing, in words


def write_expected(root: Path, expected: Iterable[Expected]) -> None:
    """Keep the expected products as the plan's table, `plan.parquet`."""
    rows = [(e.product, e.fingerprint, list(e.needs), list(e.uses), e.note) for e in expected]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_table(root / PLAN, table)


def read_expected(root: Path) -> list[Expected]:
    """The expected products of the last plan; none before there was one."""
    path = root / PLAN
    if not path.exists():
        return []
    table = read_table(path)
    columns = (table[name] for name in COLUMNS)
    return [Expected(p, f, tuple(n), tuple(u), t) for p, f, n, u, t in zip(*columns, strict=True)]


def ledger(root: Path, expected: Iterable[Expected]) -> pd.DataFrame:
    """State of every expected product: product, kind, state, fingerprint, caveats, reason.

    A product is blocked when an input failed or is blocked itself; the reason names it.
    """
    rows: list[dict[str, object]] = []
    state_of: dict[str, State] = {}
    for item in expected:
        state, reason, caveats = _state(root, item, state_of)
        state_of[item.product] = state
        rows.append(
            {
                "product": item.product,
                "kind": kind_of(item.product),
                "state": state,
                "fingerprint": published_fingerprint(root, item.product),
                "caveats": ", ".join(caveats),
                "reason": reason,
                "note": item.note,
            }
        )
    names = ["product", "kind", "state", "fingerprint", "caveats", "reason", "note"]
    return pd.DataFrame(rows, columns=names)


def _state(
    root: Path, item: Expected, state_of: dict[str, State]
) -> tuple[State, str, tuple[str, ...]]:
    attempt = read_attempt(root, item.product)
    published = published_fingerprint(root, item.product)
    broken = [n for n in item.needs if state_of.get(n) in ("failed", "blocked", "empty")]
    if broken:
        return "blocked", f"{broken[0]} is {state_of[broken[0]]}", ()
    unmade = [n for n in item.needs + item.uses if state_of.get(n) in ("waiting", "stale")]
    if unmade:
        return ("stale" if published else "waiting"), f"{unmade[0]} must be made first", ()
    tried = attempt is not None and attempt.fingerprint == item.fingerprint
    if published == item.fingerprint:
        return "done", "", attempt.caveats if attempt is not None and tried else ()
    if attempt is not None and tried and attempt.outcome == "empty":
        return "empty", attempt.reason, attempt.caveats
    if attempt is not None and tried and attempt.outcome == "failed":
        return "failed", attempt.reason, ()
    if published:
        return "stale", "its inputs, settings or version changed since it was made", ()
    return "waiting", "", ()
