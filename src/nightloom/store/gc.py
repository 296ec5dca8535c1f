"""What may go: old versions, what was set aside, folders of dead runs, products nobody expects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nightloom.store.products import (
    ATTEMPT,
    DAMAGED,
    VERSIONS,
    kind_of,
    place_of,
    work_folder,
)
from nightloom.store.work import discard, leftovers

Why = Literal["old version", "damaged", "work of a dead run", "not expected"]


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that may go, with all its files."""

    product: str  # "" for what belongs to none
    why: Why
    paths: tuple[Path, ...]
    n_files: int
    n_bytes: int


def old_versions(root: Path, products: Sequence[str], *, keep: int) -> list[Garbage]:
    """Versions that are not current, but for the `keep` newest of each product.

    A version that a current product was made of is kept too: pages and lineage still read it.
    """
    in_use = _made_of(root, products)
    found: list[Garbage] = []
    for product in products:
        folder = place_of(root, product) / VERSIONS
        by_mark: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.endswith(DAMAGED):
                found.append(_garbage(product, "damaged", [path]))
            else:
                by_mark.setdefault(path.name.partition(".")[0], []).append(path)
        needed = _linked(root, product) | in_use.get(product, set())
        old = [mark for mark in by_mark if mark not in needed]
        old.sort(key=lambda mark: max(p.stat().st_mtime_ns for p in by_mark[mark]), reverse=True)
        found += [_garbage(product, "old version", by_mark[mark]) for mark in old[keep:]]
    return found


def dead_work(root: Path) -> list[Garbage]:
    """Work folders whose process is gone."""
    return [
        _garbage(path.parent.relative_to(root).as_posix(), "work of a dead run", [path])
        for path in leftovers(root)
    ]


def orphans(root: Path, products: Sequence[str], expected: Collection[str]) -> list[Garbage]:
    """Products on disk that the plan does not want, such as those of a target taken out."""
    wanted = set(expected)
    return [
        _garbage(product, "not expected", _own_paths(root, product))
        for product in products
        if product not in wanted
    ]


def remove(root: Path, garbage: Garbage) -> bool:
    """Remove it; False where it came into use since it was found, and so was kept.

    It is moved first: who swaps a symlink to a version in this instant is seen, and it is put
    back. Files that a reader has open stay readable to it; a store opened lazily raises.
    """
    if garbage.why == "work of a dead run":
        for path in garbage.paths:
            discard(path)
        return True
    moved: dict[Path, Path] = {}
    with work_folder(root, garbage.product) as work:
        for path in garbage.paths:
            with contextlib.suppress(FileNotFoundError):
                moved[path] = path.rename(work / path.name)
        marks = {path.name.partition(".")[0] for path in moved}
        if garbage.why == "old version" and _linked(root, garbage.product) & marks:
            for path, aside in moved.items():
                aside.rename(path)
            return False
    _remove_empty(place_of(root, garbage.product), root)
    return True


def _own_paths(root: Path, product: str) -> list[Path]:
    """What lies at a product's place and is its own; another product may lie below it."""
    place = place_of(root, product)
    own = [place / VERSIONS, place / ATTEMPT, *place.glob(f"{kind_of(product)}.*")]
    return [path for path in own if path.is_symlink() or path.exists()]


def _linked(root: Path, product: str) -> set[str]:
    """Fingerprints that a product's symlinks name."""
    links = place_of(root, product).glob(f"{kind_of(product)}.*")
    return {link.readlink().name.partition(".")[0] for link in links if link.is_symlink()}


def _made_of(root: Path, products: Sequence[str]) -> dict[str, set[str]]:
    """Versions of products that current products name as their inputs."""
    used: dict[str, set[str]] = {}
    for product in products:
        metadata = place_of(root, product) / f"{kind_of(product)}.zarr" / "zarr.json"
        try:
            inputs = json.loads(metadata.read_bytes())["attributes"]["inputs"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # nothing published, or damaged: verify's business
        for name, mark in inputs:
            used.setdefault(str(name), set()).add(str(mark))
    return used


def _garbage(product: str, why: Why, paths: Sequence[Path]) -> Garbage:
    n_files = n_bytes = 0
    for path in paths:
        files = [f for f in (path, *path.rglob("*")) if f.is_symlink() or not f.is_dir()]
        n_files += len(files)
        with contextlib.suppress(FileNotFoundError):  # a run finished meanwhile
            n_bytes += sum(file.lstat().st_size for file in files)
    return Garbage(product, why, tuple(paths), n_files, n_bytes)


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
