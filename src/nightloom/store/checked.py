"""A Zarr store to read from that never takes lost or damaged bytes for numbers.

To Zarr a chunk that is not there is one that was never written, and reads as fill. Here every
read of a published version is held against its manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
from zarr.storage import LocalStore, WrapperStore

from nightloom.errors import ArchiveError
from nightloom.store.manifest import REMEDY, Manifest, read_manifest

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

CRC_BYTES = 4


class CheckedStore(WrapperStore[LocalStore]):
    """A published store, read-only; Zarr asks it for whole files, or for pieces of shards.

    A piece is a shard's index or an inner chunk: either ends in the CRC32C of what precedes it.
    """

    def __init__(self, store: LocalStore, manifest: Manifest | None = None) -> None:
        super().__init__(store)
        self._manifest = manifest or {}

    @property
    def has_manifest(self) -> bool:
        return bool(self._manifest)

    def _with_store(self, store: LocalStore) -> CheckedStore:
        return CheckedStore(store, self._manifest)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """What lies there; None for what the version never had.

        Raises ArchiveError: it is missing or damaged.
        """
        found = await super().get(key, prototype, byte_range)
        known = self._manifest.get(f"{self._store.root.suffix}/{key}")
        if known is None:
            return found
        if found is None:
            raise damaged(self._store.root, key, "is missing")
        data = found.as_numpy_array()
        size, crc = known
        if byte_range is None:
            whole = len(data) == size and google_crc32c.value(data) == crc
        else:
            stored = int.from_bytes(data[-CRC_BYTES:].tobytes(), "little")
            whole = google_crc32c.value(data[:-CRC_BYTES]) == stored
        if not whole:
            raise damaged(self._store.root, key, "is damaged: its checksum differs")
        return found


def damaged(version: Path, key: str, why: str) -> ArchiveError:
    """What is to be said of a file of a version that is lost or damaged."""
    return ArchiveError(where=f"{version}/{key}", why=why, do=REMEDY)


def checked_store(path: Path) -> CheckedStore:
    """The published store at this path, every file counted and none shorter or longer than made.

    Raises ArchiveError: files are missing or cut, the manifest is damaged.
    """
    manifest = read_manifest(path)
    for name, (size, _) in (manifest or {}).items():
        artefact, _, key = name.partition("/")
        if artefact != path.suffix:
            continue
        try:
            found = (path / key).stat().st_size
        except OSError:
            raise damaged(path, key, "is missing") from None
        if found != size:
            raise damaged(path, key, f"has {found} bytes of {size}")
    return CheckedStore(LocalStore(path, read_only=True), manifest)
