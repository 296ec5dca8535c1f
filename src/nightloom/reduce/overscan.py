"""The bias level of a frame as its overscan shows it, and which of its pixels hold data.

The level is a median for each row, as LSST's MEDIAN_PER_ROW and ccdproc's median do: it follows a
bias that drifts while the frame is read. Its error is 1.25 / sqrt(n) of the read noise, the same
along the row, so that an aperture does not average it out; where the strip is too narrow for
that, or lies above or below the data, one median of all its pixels is taken (as BANZAI's level).
Coordinates stay those of the raw frame: what is no data is masked, not cut off.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.frames.image_section import ImageSection, section_within
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.pixels import pixels_of

LEAST_COLUMNS = 16  # of a strip, for a median a row: its error is then 0.31 of the read noise
CACHE = 4096  # levels of frames that have one each

Floats = NDArray[np.float32]


def data_of(frame: PlannedFrame) -> ImageSection:
    """The pixels of a frame that hold data: all of them where nothing else is told.

    Raises FrameError: its section is not inside the frame.
    """
    if not frame.data_section:
        return ImageSection(0, frame.nx, 0, frame.ny)
    return _section(frame, "data_section")


def row_levels(raw: NDArray[Any], frame: PlannedFrame, *, first_row: int = 0) -> Floats | None:
    """Bias level of each of some rows of a frame, ADU; None where it has no overscan.

    raw: [row, x], whole rows of the frame from `first_row` on. Rows beside which there is no
    overscan are NaN. Raises FrameError, TransientError: the frame can't be read.
    """
    if not frame.overscan_section:
        return None
    strip, data = _section(frame, "overscan_section"), data_of(frame)
    beside = strip.y0 <= data.y0 and data.y1 <= strip.y1
    if not beside or strip.x1 - strip.x0 < LEAST_COLUMNS:
        return np.full(len(raw), _frame_level(frame), np.float32)
    levels = np.full(len(raw), np.nan, np.float32)
    start, stop = (int(np.clip(y - first_row, 0, len(raw))) for y in (strip.y0, strip.y1))
    if start < stop:
        levels[start:stop] = np.median(raw[start:stop, strip.columns], axis=1)
    return levels


@lru_cache(maxsize=CACHE)
def _frame_level(frame: PlannedFrame) -> float:
    strip = _section(frame, "overscan_section")
    return float(np.median(pixels_of(frame, rows=strip.rows)[:, strip.columns]))


def _section(frame: PlannedFrame, column: str) -> ImageSection:
    text = getattr(frame, column)
    return section_within(text, ny=frame.ny, nx=frame.nx, where=f"{frame.path} {column}")


def less_overscan(raw: NDArray[Any], frame: PlannedFrame, *, first_row: int = 0) -> Floats:
    """Some rows of a frame less their bias level, NaN where they hold no data.

    raw: [row, x], whole rows of the frame from `first_row` on.
    """
    pixels = raw.astype(np.float32)
    if not frame.data_section:
        return pixels
    data, levels = data_of(frame), row_levels(raw, frame, first_row=first_row)
    if levels is not None:
        pixels -= levels[:, None]
    start, stop = (int(np.clip(y - first_row, 0, len(raw))) for y in (data.y0, data.y1))
    pixels[:start] = np.nan
    pixels[stop:] = np.nan
    pixels[:, : data.x0] = np.nan
    pixels[:, data.x1 :] = np.nan
    return pixels


def offset_with_levels(
    raw: NDArray[Any], frame: PlannedFrame, offset: Floats | None, *, first_row: int = 0
) -> Floats | None:
    """What is to be subtracted from some rows of a frame: bias and dark, and its own bias level.

    Outside the data it is 0, where masters hold no number: those pixels are to be masked.
    """
    if not frame.data_section:
        return offset
    data, levels = data_of(frame), row_levels(raw, frame, first_row=first_row)
    if offset is None and levels is None:
        return None
    whole = np.zeros(raw.shape, np.float32)
    start, stop = (int(np.clip(y - first_row, 0, len(raw))) for y in (data.y0, data.y1))
    inner = (slice(start, stop), data.columns)
    if offset is not None:
        whole[inner] = offset[inner]
    if levels is not None:
        whole[inner] += levels[start:stop, None]
    return whole
