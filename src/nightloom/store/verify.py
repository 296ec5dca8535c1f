"""Every published byte against what was published: which product, file, array, chunk is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightloom.errors import ArchiveError
from nightloom.store.chunks import damaged_chunks, key_of, layout_of
from nightloom.store.manifest import Manifest, difference, files_in, manifest_path, read_manifest
from nightloom.store.products import (
    ATTEMPT,
    DAMAGED,
    VERSIONS,
    kind_of,
    place_of,
    read_attempt,
    set_aside,
)

METADATA = "zarr.json"


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with one file of a product; array and chunk where it is one of an array."""

    product: str
    file: str  # relative to the product's place
    why: str
    array: str = ""
    chunk: str = ""

    def __str__(self) -> str:
        inside = f" ({self.array}, chunk {self.chunk})" if self.chunk else ""
        return f"{self.product}: {self.file}{inside} {self.why}"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at of a product, and what was found wrong."""

    product: str
    n_files: int
    n_bytes: int
    has_manifest: bool
    flaws: tuple[Flaw, ...]


def verify_products(root: Path, products: Sequence[str]) -> list[Verified]:
    """Products one after the other."""
    return [verify_product(root, product) for product in products]


def verify_product(root: Path, product: str) -> Verified:
    """Read every byte of the published version; changes nothing on disk."""
    flaws = list(_record_flaws(root, product))
    artefacts, bad_links = _targets(product, _links(root, product))
    flaws += bad_links
    manifest: Manifest | None = None
    n_files = n_bytes = 0
    if artefacts:
        try:
            manifest = read_manifest(artefacts[0])
        except ArchiveError as error:
            name = f"{VERSIONS}/{manifest_path(artefacts[0]).name}"
            flaws.append(Flaw(product, name, error.why))
    for artefact in artefacts:
        files = files_in(artefact)
        n_files += len(files)
        n_bytes += sum(file.lstat().st_size for file in files)
        flaws += _artefact_flaws(product, artefact, files, manifest)
    return Verified(product, n_files, n_bytes, manifest is not None, tuple(flaws))


def forget(root: Path, flaws: Sequence[Flaw]) -> list[str]:
    """Take what is damaged out of the way, so that the next run makes it; returns the products.

    Versions are set aside under another name until `gc`; their records are removed. Where only
    the record is damaged, what is published stays.
    """
    products = sorted({flaw.product for flaw in flaws})
    for product in products:
        (place_of(root, product) / ATTEMPT).unlink(missing_ok=True)
    for product in sorted({flaw.product for flaw in flaws if flaw.file != ATTEMPT}):
        take_away(root, product)
    return products


def take_away(root: Path, product: str) -> None:
    """Set a product's published version aside and forget how it was made."""
    (place_of(root, product) / ATTEMPT).unlink(missing_ok=True)
    for link in _links(root, product):
        version = link.resolve()
        link.unlink()
        if version.parent.name == VERSIONS:
            set_aside(version)
            manifest_path(version).unlink(missing_ok=True)


def _record_flaws(root: Path, product: str) -> Iterator[Flaw]:
    try:
        attempt = read_attempt(root, product)
        if attempt is not None and attempt.outcome == "done" and not _links(root, product):
            yield Flaw(product, f"{kind_of(product)}.*", "is missing: the record says it was made")
    except ArchiveError as error:
        yield Flaw(product, ATTEMPT, error.why)
    except OSError as error:
        yield Flaw(product, ATTEMPT, f"can't be read: {error.strerror}")


def _links(root: Path, product: str) -> list[Path]:
    return sorted(place_of(root, product).glob(f"{kind_of(product)}.*"))


def _targets(product: str, links: Sequence[Path]) -> tuple[list[Path], list[Flaw]]:
    """Artefacts that a product's symlinks name, and the symlinks that name none."""
    targets: list[Path] = []
    flaws: list[Flaw] = []
    for link in links:
        if not link.is_symlink():
            flaws.append(Flaw(product, link.name, "is no symlink to a version"))
            continue
        target = link.parent / link.readlink()
        if not target.exists():
            flaws.append(Flaw(product, link.name, f"names {link.readlink()}, which is not there"))
        elif target.parent.name != VERSIONS:
            flaws.append(Flaw(product, link.name, f"names {link.readlink()}, which is no version"))
        else:
            targets.append(target)
    if len({target.stem for target in targets}) > 1:
        flaws.append(Flaw(product, links[0].name, "its symlinks name different versions"))
    return targets, flaws


def _artefact_flaws(
    product: str, artefact: Path, files: Sequence[Path], manifest: Manifest | None
) -> list[Flaw]:
    base = f"{VERSIONS}/{artefact.name}"
    found = {"" if f == artefact else f.relative_to(artefact).as_posix() for f in files}
    flaws: list[Flaw] = []
    if artefact.suffix == ".zarr":
        flaws += _zarr_flaws(product, artefact, base)
    named = {flaw.file for flaw in flaws}
    mine = {
        n: n.partition("/")[2] for n in manifest or () if n.partition("/")[0] == artefact.suffix
    }
    for name, key in mine.items():
        file = f"{base}/{key}" if key else base
        why = "" if file in named else difference(artefact, manifest or {}, name=name)
        if why:
            flaws.append(Flaw(product, file, why))
    if manifest is not None:
        flaws += [
            Flaw(product, f"{base}/{key}", "is not of this version")
            for key in sorted(found - set(mine.values()))
        ]
    return flaws


def _zarr_flaws(product: str, store: Path, base: str) -> Iterator[Flaw]:
    """Metadata that can't be parsed or says something else; chunks that are missing or damaged."""
    root = _json(store / METADATA)
    if isinstance(root, str):
        yield Flaw(product, f"{base}/{METADATA}", root)
    else:
        yield from _identity_flaws(product, store, base, root)
    for folder in sorted(path for path in store.iterdir() if path.is_dir()):
        metadata = _json(folder / METADATA)
        if isinstance(metadata, str):
            yield Flaw(product, f"{base}/{folder.name}/{METADATA}", metadata, folder.name)
            continue
        try:
            layout = layout_of(metadata)
        except (KeyError, TypeError, IndexError) as error:
            why = f"describes no array: {error!r}"
            yield Flaw(product, f"{base}/{folder.name}/{METADATA}", why, folder.name)
            continue
        for index in layout.files:
            key = key_of(index)
            for chunk, why in _file_flaws(folder / key, index, layout):
                yield Flaw(product, f"{base}/{folder.name}/{key}", why, folder.name, chunk)


def _file_flaws(file: Path, index: tuple[int, ...], layout: Any) -> Iterator[tuple[str, str]]:
    try:
        yield from damaged_chunks(file, index, layout)
    except FileNotFoundError:
        yield str(index), "is missing"
    except OSError as error:
        yield str(index), f"can't be read: {error.strerror}"


def _identity_flaws(product: str, store: Path, base: str, root: dict[str, Any]) -> Iterator[Flaw]:
    """Whether the store says itself that it is this product and version, with these arrays."""
    file = f"{base}/{METADATA}"
    attributes = root.get("attributes", {})
    for name, expected in (("product", product), ("fingerprint", store.stem)):
        if attributes.get(name, expected) != expected:
            yield Flaw(product, file, f"says {name} {attributes[name]!r}, not {expected!r}")
    arrays = root.get("consolidated_metadata", {}).get("metadata", {})
    for name in sorted(arrays):
        if not (store / name).is_dir():
            yield Flaw(product, f"{base}/{name}", "is missing", name)


def _json(path: Path) -> dict[str, Any] | str:
    """Metadata, or why there is none."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    except ValueError as error:
        return f"is no JSON: {error}"
    return data if isinstance(data, dict) else "is no JSON object"


def is_aside(version: Path) -> bool:
    """Whether a version was taken out of the way."""
    return version.name.endswith(DAMAGED)
