"""The ledger: every expected product with its state, read off products and attempts."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from nightloom.store.products import Attempt, kind_of, published_fingerprint, read_attempt
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


def made_of(expected: Iterable[Expected], products: Collection[str]) -> list[str]:
    """The expected products that are made of some, directly or by way of others."""
    users: dict[str, list[str]] = {}
    for item in expected:
        for name in item.needs + item.uses:
            users.setdefault(name, []).append(item.product)
    found: dict[str, None] = {}
    coming = deque(products)
    while coming:
        for user in users.get(coming.popleft(), ()):
            if user not in found:
                found[user] = None
                coming.append(user)
    return [name for name in found if name not in products]


@dataclass(frozen=True, slots=True)
class Line:
    """An expected product with what lies on disk of it."""

    item: Expected
    published: str  # fingerprint of the published version, "" where there is none
    attempt: Attempt | None  # the last one


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a product, with its reason or its caveats."""

    state: State
    reason: str = ""
    caveats: tuple[str, ...] = ()


def read_line(root: Path, item: Expected) -> Line:
    """What lies on disk of an expected product."""
    return Line(item, published_fingerprint(root, item.product), read_attempt(root, item.product))


def standings(lines: Iterable[Line]) -> dict[str, Standing]:
    """State of each product, in whatever order they come.

    A product is blocked when an input failed or is blocked itself; the reason names it.
    """
    known = {line.item.product: line for line in lines}
    found: dict[str, Standing] = {}
    for product in known:
        _settle(product, known, found)
    return {product: found[product] for product in known}


def _settle(product: str, known: Mapping[str, Line], found: dict[str, Standing]) -> None:
    """The state of a product, after those of what it is made of."""
    if product in found:
        return
    line = known[product]
    for name in line.item.needs + line.item.uses:
        if name in known:
            _settle(name, known, found)
    found[product] = _standing(line, found)


def ledger(root: Path, expected: Iterable[Expected]) -> pd.DataFrame:
    """State of every expected product: product, kind, state, fingerprint, caveats, reason."""
    lines = [read_line(root, item) for item in expected]
    found = standings(lines)
    rows: list[dict[str, object]] = []
    for line in lines:
        product = line.item.product
        standing = found[product]
        rows.append(
            {
                "product": product,
                "kind": kind_of(product),
                "state": standing.state,
                "fingerprint": line.published,
                "caveats": ", ".join(standing.caveats),
                "reason": standing.reason,
                "note": line.item.note,
            }
        )
    names = ["product", "kind", "state", "fingerprint", "caveats", "reason", "note"]
    return pd.DataFrame(rows, columns=names)


def _standing(line: Line, found: Mapping[str, Standing]) -> Standing:
    item, published, attempt = line.item, line.published, line.attempt
    states = {name: found[name].state for name in item.needs + item.uses if name in found}
    broken = [n for n in item.needs if states.get(n) in ("failed", "blocked", "empty")]
    if broken:
        return Standing("blocked", f"{broken[0]} is {states[broken[0]]}")
    unmade = [n for n in item.needs + item.uses if states.get(n) in ("waiting", "stale")]
    if unmade:
        return Standing("stale" if published else "waiting", f"{unmade[0]} must be made first")
    tried = attempt if attempt is not None and attempt.fingerprint == item.fingerprint else None
    if published == item.fingerprint:
        return Standing("done", "", tried.caveats if tried is not None else ())
    if tried is not None and tried.outcome == "empty":
        return Standing("empty", tried.reason, tried.caveats)
    if tried is not None and tried.outcome == "failed":
        return Standing("failed", tried.reason)
    if published:
        return Standing("stale", "its inputs, settings or version changed since it was made")
    return Standing("waiting")
