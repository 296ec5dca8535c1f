"""Answers of the verbs that look after the products: verify, retry, gc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from nightloom.cli import show
from nightloom.engine.cluster import Engine
from nightloom.errors import ArchiveError, ConfigError, RunError
from nightloom.pipeline import FRAMES
from nightloom.store.ledger import PLAN
from nightloom.store.products import products_on_disk
from nightloom.store.tables import read_table
from nightloom.store.verify import Flaw, Verified, forget, verify_products

PRODUCTS_A_TASK = 8


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
    for result in engine.map(partial(verify_products, root), chunks):
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
