"""Answers of the verbs that look after the products: verify, retry, gc, plan --dry-run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from nightloom import pipeline
from nightloom.cli import show
from nightloom.config import Config
from nightloom.engine.cluster import Engine
from nightloom.errors import ArchiveError, ConfigError, RunError
from nightloom.pipeline import FRAMES, Run
from nightloom.plan.forecast import check_room, forecast, room_at
from nightloom.plan.recipes import Plan, make_plan
from nightloom.store.gc import Garbage, dead_work, old_versions, orphans, remove
from nightloom.store.ledger import PLAN, ledger, made_of, read_expected
from nightloom.store.products import ATTEMPT, place_of, products_on_disk, read_attempt
from nightloom.store.tables import read_table
from nightloom.store.verify import Flaw, Verified, forget, take_away, verify_products

PRODUCTS_A_TASK = 8
DUE = ("waiting", "stale", "failed")
MOST_REASONS = 10


def named(root: Path, wanted: Sequence[str]) -> list[str]:
    """The products on disk, or those that were named.

    Raises ConfigError: a name that is none of them.
    """
    known = products_on_disk(root)
    for name in wanted:
        if name not in known:
            near = [product for product in known if name in product][:5]
            do = f"perhaps {', '.join(near)}" if near else "see: nightloom status"
            raise ConfigError(where=name, why="is no product in this archive", do=do)
    return list(wanted) or known


def verify(
    engine: Engine, root: Path, wanted: Sequence[str], *, take_away: bool, as_json: bool
) -> bool:
    """Read every byte of the products; whether all is well."""
    names = named(root, wanted)
    chunks = [names[i : i + PRODUCTS_A_TASK] for i in range(0, len(names), PRODUCTS_A_TASK)]
    verified: list[Verified] = []
    for result in engine.map(partial(verify_products, root), chunks, kind="verify"):
        if result.failure is not None:
            raise RunError(where="verify", why=result.failure[1])
        verified += result.value
    flaws = [flaw for one in verified for flaw in one.flaws]
    bare = [one.product for one in verified if one.n_files and not one.has_manifest]
    tables = [] if wanted else _table_flaws(root)
    forgotten = forget(root, flaws) if take_away else []
    if as_json:
        show.as_json(
            {
                "products": len(verified),
                "files": sum(one.n_files for one in verified),
                "bytes": sum(one.n_bytes for one in verified),
                "without_manifest": bare,
                "flaws": [asdict(flaw) for flaw in flaws + tables],
                "forgotten": forgotten,
            }
        )
    else:
        _told(verified, flaws + tables, bare, forgotten)
    return not flaws and not tables


def _table_flaws(root: Path) -> list[Flaw]:
    flaws = []
    for name in (FRAMES, PLAN):
        if (root / name).exists():
            try:
                read_table(root / name)
            except ArchiveError as error:
                flaws.append(Flaw("", name, f"{error.why}; {error.do}"))
    return flaws


def _told(
    verified: Sequence[Verified],
    flaws: Sequence[Flaw],
    bare: Sequence[str],
    forgotten: Sequence[str],
) -> None:
    for flaw in flaws:
        show.err.print(str(flaw), markup=False)
    n_bytes = sum(one.n_bytes for one in verified)
    show.line(
        f"{len(verified)} products, {sum(one.n_files for one in verified)} files, "
        f"{n_bytes / 1e6:.1f} MB read: {len(flaws)} flaws"
    )
    if bare:
        show.line(
            f"{len(bare)} without a manifest (made by an older version): only their chunks have "
            f"checksums, first {bare[0]}"
        )
    if forgotten:
        show.line(f"set aside: {', '.join(forgotten)}; nightloom run makes them again")
    elif any(flaw.product for flaw in flaws):
        show.line("nightloom verify --forget sets them aside, nightloom run makes them again")


def gc(root: Path, *, keep: int, with_orphans: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what is old; list what nobody expects.

    Raises RunError: products that are not expected were to go, and no plan says what is.
    """
    products = products_on_disk(root)
    wanted = [item.product for item in read_expected(root)]
    if with_orphans and not wanted:
        raise RunError(where=str(root), why="no plan says what is expected", do="nightloom run")
    strangers = orphans(root, products, wanted) if wanted else []
    lost = {item.product for item in strangers} if with_orphans else set()
    garbage = [
        *dead_work(root),
        *old_versions(root, [name for name in products if name not in lost], keep=keep),
        *(strangers if with_orphans else []),
    ]
    removed = garbage if dry_run else [item for item in garbage if remove(root, item)]
    listed = [] if with_orphans else strangers
    if as_json:
        show.as_json(
            {
                "dry_run": dry_run,
                "removed": [_as_row(item, root) for item in removed],
                "bytes": sum(item.n_bytes for item in removed),
                "files": sum(item.n_files for item in removed),
                "not_expected": [_as_row(item, root) for item in listed],
            }
        )
        return
    for item in removed:
        names = ", ".join(path.name for path in item.paths)
        show.line(f"{item.why}: {item.product}: {names} ({item.n_bytes / 1e6:.1f} MB)")
    for item in listed:
        size = f"{item.n_bytes / 1e6:.1f} MB"
        show.line(f"not expected: {item.product} ({size}): --orphans removes it")
    n_bytes, n_files = sum(i.n_bytes for i in removed), sum(i.n_files for i in removed)
    done = "to remove" if dry_run else "removed"
    show.line(f"{done}: {len(removed)}, {n_files} files, {n_bytes / 1e6:.1f} MB")


def _as_row(item: Garbage, root: Path) -> dict[str, object]:
    return {
        "product": item.product,
        "why": item.why,
        "paths": [str(path.relative_to(root)) for path in item.paths],
        "files": item.n_files,
        "bytes": item.n_bytes,
    }


def failures(root: Path, wanted: Sequence[str], *, all_failed: bool) -> list[str]:
    """Forget the failures of some products, or of all, so that a run tries them again.

    Products that lost frames because workers died are set aside with all that is made of them:
    their inputs are what they were, so nothing else would make them anew.

    Raises ConfigError: nothing is named, or what is named neither failed nor came out empty.
    """
    if not wanted and not all_failed:
        raise ConfigError(where="retry", why="what?", do="name a product, or give --failed")
    tried: list[str] = []
    killed: list[str] = []
    for product in named(root, wanted):
        attempt = read_attempt(root, product)
        outcome = "" if attempt is None else attempt.outcome
        if outcome == "failed" or (outcome == "empty" and product in wanted and not all_failed):
            (place_of(root, product) / ATTEMPT).unlink(missing_ok=True)
            tried.append(product)
        elif attempt is not None and attempt.outcome == "done" and attempt.n_killed:
            tried.append(product)
            killed.append(product)
        elif product in wanted:
            do = "if it is damaged: nightloom verify --forget; see: nightloom explain"
            raise ConfigError(where=product, why=f"is {outcome or 'not tried'}, not failed", do=do)
    for product in (*killed, *made_of(read_expected(root), killed)):
        take_away(root, product)
    return tried


def dry_run(config: Config, *, as_json: bool) -> None:
    """What a run would make now, why, and what it would cost; nothing is written.

    Raises RunError: the disk can't hold it.
    """
    root = config.products_path
    plan = make_plan(pipeline.look(config).frames, config)
    states = ledger(root, pipeline.expected(root, plan, config))
    due = states[states["state"].isin(DUE)]
    lines = forecast(root, plan, due["product"], config)
    room = room_at(root)
    reasons = due["reason"].replace("", "not made yet").value_counts()
    if as_json:
        show.as_json(
            {
                "due": [asdict(line) for line in lines],
                "reasons": {str(reason): int(n) for reason, n in reasons.items()},
                "bytes": sum(line.n_bytes for line in lines),
                "files": sum(line.n_files for line in lines),
                "core_hours": sum(line.core_hours for line in lines),
                "free_bytes": room.n_bytes,
                "free_files": room.n_files,
            }
        )
    elif not lines:
        show.line("nothing to make")
    else:
        rows = pd.DataFrame([asdict(line) for line in lines])
        rows["MB"] = (rows.pop("n_bytes") / 1e6).round(1)
        rows["core_hours"] = rows["core_hours"].round(3)
        show.table(rows, title="To make")
        for reason, n in list(reasons.items())[:MOST_REASONS]:
            show.line(f"{n}: {reason}")
        show.line(
            f"about {sum(f.n_bytes for f in lines) / 1e9:.2f} GB in "
            f"{sum(f.n_files for f in lines)} files, {sum(f.core_hours for f in lines):.2f} "
            f"core-hours; {room.n_bytes / 1e9:.1f} GB are free"
        )
    warning = check_room(lines, room, where=str(root))
    if warning:
        show.err.print(f"warning: {warning}", markup=False)


def check_disk(run: Run, plan: Plan) -> None:
    """Whether the disk holds what a run is about to make; a warning where it is near.

    Raises RunError: it can't.
    """
    states = ledger(run.root, read_expected(run.root))
    due = states[states["state"].isin(DUE)]["product"]
    lines = forecast(run.root, plan, due, run.config) if len(due) else []
    warning = check_room(lines, room_at(run.root), where=str(run.root))
    if warning:
        run.log(f"warning: {warning}")
        show.err.print(f"warning: {warning}", markup=False)
