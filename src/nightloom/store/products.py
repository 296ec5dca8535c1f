"""Where products lie; how they become visible, all at once, and what was tried.

A product's place is `products/<id>`. There, `.versions/<fingerprint>.<suffix>` holds each
version, `.versions/<fingerprint>.manifest` the size and checksum of its files, and a relative
symlink `<kind>.<suffix>` names the current one. Work in progress lies in `.work-...` beside, which
no reader looks at.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nightloom.errors import ArchiveError, TransientError
from nightloom.store.manifest import SUFFIX as MANIFEST_SUFFIX
from nightloom.store.manifest import (
    Manifest,
    difference,
    manifest_of,
    manifest_path,
    manifest_text,
    read_manifest,
)
from nightloom.store.work import begin_folder, discard, is_as_begun, replacing

VERSIONS = ".versions"
DAMAGED = ".damaged"  # ending of a version that was taken out of the way
ATTEMPT = "attempt.json"
SUFFIXES = ("zarr", "html")  # of what readers open first; its symlink is swapped last

Outcome = Literal["done", "empty", "failed"]
FailureKind = Literal["", "product", "transient", "killed", "bug"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What happened the last time a product was tried."""

    fingerprint: str
    outcome: Outcome
    kind: FailureKind = ""
    reason: str = ""
    caveats: tuple[str, ...] = ()
    log: str = ""
    started: str = ""
    seconds: float = 0.0
    host: str = ""
    run: str = ""
    n_items: int = 0
    n_quarantined: int = 0
    n_killed: int = 0  # of these, items whose workers died


def kind_of(product: str) -> str:
    """The first part of a product's id: master, reference, cube and so on."""
    return product.split("/", 1)[0]


def place_of(root: Path, product: str) -> Path:
    """Folder of a product."""
    return root / product


def current(root: Path, product: str) -> Path | None:
    """Path of the published version itself, None if there is none."""
    name = _published(root, product)
    return place_of(root, product) / name if name else None


def published_fingerprint(root: Path, product: str) -> str:
    """Fingerprint of the published version, empty if there is none."""
    return Path(_published(root, product)).stem


def _published(root: Path, product: str) -> str:
    """What the product's symlink names, empty where that is not there."""
    link = f"{root}/{product}/{kind_of(product)}."
    for suffix in SUFFIXES:
        # The symlink itself names the version: a real path asks for every folder above it.
        with contextlib.suppress(OSError):
            name = os.readlink(link + suffix)  # noqa: PTH115
            if os.path.exists(link + suffix):  # noqa: PTH110
                return name
    return ""


def products_on_disk(root: Path) -> list[str]:
    """Ids of all products that have a version or a record of an attempt, in order of name."""
    found: list[str] = []
    for folder, inside, files in os.walk(root):
        if VERSIONS in inside or ATTEMPT in files:
            found.append(Path(folder).relative_to(root).as_posix())
        inside[:] = [name for name in inside if not name.startswith(".")]
    return sorted(found)


def require(root: Path, product: str) -> Path:
    """Real path of the published version.

    Raises ArchiveError: it was never made.
    """
    path = current(root, product)
    if path is None:
        raise ArchiveError(where=product, why="is not there", do="see: nightloom status")
    return path


@contextmanager
def work_folder(root: Path, product: str) -> Iterator[Path]:
    """A folder beside the product's place for a version in the making; gone at the end."""
    folder = new_work_folder(root, product)
    try:
        yield folder
    finally:
        discard(folder)


def new_work_folder(root: Path, product: str) -> Path:
    """A fresh folder whose name says which process of which host owns it."""
    return begin_folder(place_of(root, product))


def publish(root: Path, product: str, fingerprint: str, work: Path) -> Path:
    """Make what lies in `work` the current version; readers see the old one or this one whole.

    work: holds `<kind>.<suffix>` files or folders. Files come to disk before the symlink is
    swapped, so a crash leaves the old version. Made before with this fingerprint: kept, ours
    dropped, unless what is there was damaged since. Returns the path of the version.
    Raises ArchiveError: nothing was written, or `work` was taken away meanwhile and came back.
    """
    if not is_as_begun(work):
        raise ArchiveError(
            where=product, why="was given up while it was made", do="nightloom run makes it again"
        )
    place = place_of(root, product)
    versions = place / VERSIONS
    versions.mkdir(parents=True, exist_ok=True)
    kind = kind_of(product)
    # A finish that died half way may have moved some of them already.
    suffixes = {p.suffix for p in work.glob(f"{kind}.*")}
    suffixes |= {p.suffix for p in versions.glob(f"{fingerprint}.*")}
    suffixes -= {MANIFEST_SUFFIX, DAMAGED}
    if not suffixes:
        raise ArchiveError(where=product, why="nothing was written to publish")
    version = versions
    ordered = sorted(suffixes, key=lambda suffix: suffix[1:] in SUFFIXES)
    made = {suffix: work / f"{kind}{suffix}" for suffix in ordered}
    ours = manifest_of(
        path if path.exists() else versions / f"{fingerprint}{suffix}"
        for suffix, path in made.items()
    )
    for suffix, artefact in made.items():
        version = versions / f"{fingerprint}{suffix}"
        if artefact.exists():
            _sync_tree(artefact)
            _move_once(artefact, version, ours)
    if _manifest_or_none(version) is None:
        write_text(manifest_path(version), manifest_text(ours))
    _sync(versions)
    for suffix in ordered:
        _swap_link(place / f"{kind}{suffix}", Path(VERSIONS) / f"{fingerprint}{suffix}")
    _sync(place)
    return version


def write_attempt(root: Path, product: str, attempt: Attempt) -> None:
    """Record beside the product what happened."""
    place = place_of(root, product)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / ATTEMPT, json.dumps(asdict(attempt), indent=1, sort_keys=True) + "\n")


def read_attempt(root: Path, product: str) -> Attempt | None:
    """The record of the last attempt, None if it was never tried.

    Raises ArchiveError: the record is damaged.
    """
    path = place_of(root, product) / ATTEMPT
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Attempt(**{**data, "caveats": tuple(data.get("caveats", ()))})
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise ArchiveError(
            where=str(path), why=f"is damaged: {error}", do="delete it; the product is checked anew"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TransientError(
            where=str(path), why=f"can't be written: {error.strerror}", do="free space or rights"
        ) from error


def set_aside(version: Path) -> None:
    """Take an artefact of a version out of the way; `gc` removes it, nobody else looks at it."""
    aside = version.with_name(f"{version.name}-{uuid.uuid4().hex[:8]}{DAMAGED}")
    with contextlib.suppress(FileNotFoundError):  # another driver was faster
        version.rename(aside)


def _move_once(source: Path, target: Path, ours: Manifest) -> None:
    # A folder that is not empty can't be renamed onto: then the same version was made before.
    if target.exists() and not _is_whole(target, _manifest_or_none(target) or ours):
        set_aside(target)
        manifest_path(target).unlink(missing_ok=True)
    if target.is_file():
        return
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise


def _is_whole(version: Path, manifest: Manifest) -> bool:
    names = [n for n in manifest if n.partition("/")[0] == version.suffix]
    return bool(names) and not any(difference(version, manifest, name=n) for n in names)


def _manifest_or_none(version: Path) -> Manifest | None:
    try:
        return read_manifest(version)
    except ArchiveError:
        return None


def _swap_link(link: Path, target: Path) -> None:
    with replacing(link) as temporary:
        temporary.symlink_to(target)


def _sync_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    if path.is_file():
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems can't sync a folder; the rename is then theirs to order.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
