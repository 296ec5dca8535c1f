"""A Zarr array's files as bytes: which must be there, and which inner chunk of one is damaged.

Only what nightloom writes: chunks that end in their CRC32C, alone in a file or in a shard whose
index lies at its end, 16 bytes a chunk and a CRC32C of its own (Zarr 3, `sharding_indexed`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product as every
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

CRC_BYTES = 4
_NEVER_WRITTEN = np.uint64(2**64 - 1)
Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array is cut: files of `file_shape`, each with inner chunks of `chunk_shape`."""

    shape: Index
    file_shape: Index
    chunk_shape: Index
    has_checksums: bool

    @property
    def files(self) -> Iterator[Index]:
        """Index of every file that must be there."""
        counts = [math.ceil(n / step) for n, step in zip(self.shape, self.file_shape, strict=True)]
        return every(*(range(count) for count in counts))

    @property
    def chunks_a_file(self) -> Index:
        return tuple(a // b for a, b in zip(self.file_shape, self.chunk_shape, strict=True))

    @property
    def is_sharded(self) -> bool:
        return self.file_shape != self.chunk_shape


def layout_of(metadata: Mapping[str, Any]) -> Layout:
    """The layout that an array's `zarr.json` describes.

    Raises KeyError, TypeError: it describes no array of format 3.
    """
    file_shape = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = metadata["codecs"]
    chunk_shape = file_shape
    if codecs[0]["name"] == "sharding_indexed":
        chunk_shape = tuple(codecs[0]["configuration"]["chunk_shape"])
        codecs = codecs[0]["configuration"]["codecs"]
    is_last = codecs[-1]["name"] == "crc32c"
    return Layout(tuple(metadata["shape"]), file_shape, chunk_shape, is_last)


def key_of(index: Index) -> str:
    """Name of a chunk's file under its array."""
    return "/".join(["c", *map(str, index)])


def damaged_chunks(file: Path, index: Index, layout: Layout) -> Iterator[tuple[str, str]]:
    """(which, why) of every damaged chunk of one file; an index is that in the whole array.

    Raises OSError: the file can't be read.
    """
    if not layout.has_checksums:
        return
    data = np.frombuffer(file.read_bytes(), np.uint8)
    if not layout.is_sharded:
        if not _holds(data):
            yield _named(index), "its checksum differs"
        return
    n_chunks = math.prod(layout.chunks_a_file)
    table = data[-(16 * n_chunks + CRC_BYTES) :]
    if len(table) != 16 * n_chunks + CRC_BYTES or not _holds(table):
        yield f"shard {_named(index)}", "the checksum of its index differs"
        return
    places = table[:-CRC_BYTES].view("<u8").reshape(n_chunks, 2)
    for inner, (start, length) in zip(np.ndindex(layout.chunks_a_file), places, strict=True):
        where = tuple(i * n + j for i, n, j in zip(index, layout.chunks_a_file, inner, strict=True))
        if start == _NEVER_WRITTEN:
            yield _named(where), "was never written"
        elif not _holds(data[int(start) : int(start) + int(length)]):
            yield _named(where), "its checksum differs"


def _holds(data: NDArray[np.uint8]) -> bool:
    stored = int.from_bytes(data[-CRC_BYTES:].tobytes(), "little")
    return len(data) >= CRC_BYTES and google_crc32c.value(data[:-CRC_BYTES]) == stored


def _named(index: Index) -> str:
    return "(" + ", ".join(map(str, index)) + ")"
