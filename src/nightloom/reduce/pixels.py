"""The pixels of a planned frame, from the file that was scanned and no other."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from nightloom.errors import FrameError, TransientError
from nightloom.frames.fits import read_pixels
from nightloom.plan.recipes import PlannedFrame


def pixels_of(frame: PlannedFrame, *, rows: slice | None = None) -> NDArray[Any]:
    """Raw pixels of a frame [y, x], or some of its rows.

    Raises FrameError: they can't be read. TransientError: the file is gone, or not the size it was
    when it was scanned: what is made of it would carry the fingerprint of another.
    """
    require_unchanged(frame)
    try:
        return read_pixels(frame.file, frame.hdu, rows=rows)
    except FrameError:
        require_unchanged(frame)
        raise


def require_unchanged(frame: PlannedFrame) -> None:
    """Raises TransientError: the file is gone, or not of the size it had when it was scanned."""
    try:
        size = frame.file.stat().st_size
    except OSError as error:
        why = error.strerror or str(error)
        raise TransientError(where=str(frame.file), why=why, do="run again") from error
    if size != frame.size_bytes:
        why = f"has {size} bytes, and had {frame.size_bytes} when it was scanned"
        raise TransientError(where=str(frame.file), why=why, do="run again")
