"""The same rows of many raw frames at once: memory is set by the section, not by the frames."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.errors import FrameError
from nightloom.frames.fits import (
    Hdu,
    locate_image,
    pixel_dtype,
    read_pixels,
    read_stored,
    stored_zero,
    unpack,
)
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.overscan import less_overscan
from nightloom.reduce.pixels import require_unchanged

SECTION_BYTES = 16 << 20  # of all frames together, at most
PART_BYTES = 512 << 10  # of one frame: more gains nothing, less opens its file too often

log = logging.getLogger("nightloom")


@dataclass(frozen=True, slots=True)
class Source:
    """A frame that can be read by rows; `file` is the frame's or its unpacked copy."""

    frame: PlannedFrame
    file: Path
    hdu: Hdu


def located(
    frames: Sequence[PlannedFrame], scratch: Path
) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Frames that can be read, and a caveat for each that can't.

    A file packed as a whole would be unpacked again for each section: it is unpacked once, into
    `scratch`. Raises TransientError: a file is gone, or another than was scanned.
    """
    sources: list[Source] = []
    caveats: list[str] = []
    for k, frame in enumerate(frames):
        try:
            sources.append(_source(frame, scratch / f"frame-{k}.fits"))
        except FrameError as error:
            log.warning("left out: %s", error)
            caveats.append(f"{frame.path} left out: {error.why}")
    return tuple(sources), tuple(caveats)


def _source(frame: PlannedFrame, copy: Path) -> Source:
    require_unchanged(frame)
    hdu, file = locate_image(frame.file, frame.hdu), frame.file
    if hdu.file_bytes is None:
        unpack(frame.file, copy)
        hdu, file = locate_image(copy, frame.hdu), copy
    if hdu.shape[-2:] != (frame.ny, frame.nx):
        raise FrameError(where=frame.path, why=f"its shape is {hdu.shape}", do="scan again")
    if hdu.compressed:
        read_pixels(file, frame.hdu, rows=slice(frame.ny - 1, frame.ny))
    return Source(frame, file, hdu)


@dataclass(frozen=True, slots=True)
class RowStack:
    """Some rows of all frames, [frame, row, x]; `zero` is to be added to every pixel."""

    rows: slice
    stored: NDArray[Any]
    zero: int

    def pixels(self, k: int) -> NDArray[Any]:
        """The rows of one frame [row, x] as they are meant."""
        stored: NDArray[Any] = self.stored[k]
        if not self.zero:
            return stored
        return (stored.astype(np.int32) + self.zero).astype(np.uint16)


def rows_at_once(n_frames: int, ny: int, row_bytes: int) -> int:
    """Rows of a section of that many frames: at least one, at most all."""
    return min(ny, max(1, min(PART_BYTES, SECTION_BYTES // n_frames) // row_bytes))


def sections(sources: Sequence[Source]) -> Iterator[RowStack]:
    """All rows of some frames, section by section, in one buffer that is used again.

    Where every frame holds plain 16-bit integers they stay as they are stored, and whoever
    combines them makes numbers of them in the cache.
    """
    frame = sources[0].frame
    zeros = {stored_zero(source.hdu) for source in sources}
    zero = zeros.pop() if len(zeros) == 1 else None
    kind = np.dtype(">i2")
    if zero is None:
        kind = np.result_type(*{pixel_dtype(source.hdu) for source in sources})
    n_rows = rows_at_once(len(sources), frame.ny, kind.itemsize * frame.nx)
    buffer = np.empty(len(sources) * n_rows * frame.nx, kind)
    for first in range(0, frame.ny, n_rows):
        rows = slice(first, min(first + n_rows, frame.ny))
        shape = (len(sources), rows.stop - first, frame.nx)
        stack = buffer[: shape[0] * shape[1] * shape[2]].reshape(shape)
        for source, plane in zip(sources, stack, strict=True):
            if zero is None:
                plane[...] = read_pixels(source.file, source.hdu.index, rows=rows)
            else:
                read_stored(source.file, source.hdu, first, plane)
        yield RowStack(rows, stack, zero or 0)


def levelled(parts: Iterable[RowStack], sources: Sequence[Source]) -> Iterator[RowStack]:
    """Sections of frames less the bias level that their overscan shows, NaN outside their data."""
    for part in parts:
        values = np.empty(part.stored.shape, np.float32)
        for k, source in enumerate(sources):
            values[k] = less_overscan(part.pixels(k), source.frame, first_row=part.rows.start)
        yield RowStack(part.rows, values, 0)
