"""The manifest of a version: size and CRC32C of every file it is made of.

It lies beside the version, `.versions/<fingerprint>.manifest`, so a product's own bytes stay what
they are. It is written before a version becomes visible; what differs from it was damaged later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import google_crc32c

from nightloom.errors import ArchiveError

SUFFIX = ".manifest"
REMEDY = "nightloom verify --forget takes it out of the way, nightloom run makes it again"
PIECE_BYTES = 1 << 20

# File, as what follows the fingerprint in its path (".zarr/zarr.json") -> size, CRC32C.
Manifest = Mapping[str, tuple[int, int]]


def manifest_of(artefacts: Iterable[Path]) -> Manifest:
    """Size and checksum of every file of some artefacts, such as `cube.zarr`, read from disk."""
    return {
        artefact.suffix + ("" if file == artefact else f"/{file.relative_to(artefact).as_posix()}"):
        (file.stat().st_size, crc32c_of_file(file))
        for artefact in artefacts
        for file in files_in(artefact)
    }  # fmt: skip


def files_in(artefact: Path) -> list[Path]:
    """The files of an artefact, which may be one itself, in order of name."""
    if artefact.is_file():
        return [artefact]
    return sorted(path for path in artefact.rglob("*") if not path.is_dir())


def crc32c_of_file(path: Path) -> int:
    """CRC32C (Castagnoli) of a file's content, read in pieces."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            value = google_crc32c.extend(value, piece)
    return int(value)


def manifest_path(version: Path) -> Path:
    """Where the manifest of a version lies."""
    return version.with_suffix(SUFFIX)


def manifest_text(manifest: Manifest) -> str:
    """A manifest as it is kept: JSON with a checksum of its own."""
    files = {name: list(facts) for name, facts in sorted(manifest.items())}
    return json.dumps({"files": files, "crc32c": _own_checksum(files)}, indent=1) + "\n"


def read_manifest(version: Path) -> Manifest | None:
    """The manifest of a version; None where it has none (work in progress, or of older make).

    Raises ArchiveError: it is damaged.
    """
    path = manifest_path(version)
    try:
        data = json.loads(path.read_bytes())
        files = data["files"]
        if data["crc32c"] != _own_checksum(files):
            raise ArchiveError(where=str(path), why="is damaged: its checksum differs", do=REMEDY)
        return {str(name): (int(size), int(crc)) for name, (size, crc) in files.items()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(where=str(path), why=f"is damaged: {error}", do=REMEDY) from None


def difference(version: Path, manifest: Manifest, *, name: str) -> str:
    """How a file differs from the manifest, in words; empty where it is as it was written."""
    path = version.parent / (version.stem + name)
    size, crc = manifest[name]
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes of {size}"
        return "" if crc32c_of_file(path) == crc else "its checksum differs: bits were flipped"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _own_checksum(files: Mapping[str, list[int]]) -> int:
    return int(google_crc32c.value(json.dumps(files, sort_keys=True).encode()))
