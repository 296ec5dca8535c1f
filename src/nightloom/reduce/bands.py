"""Frames stacked by bands of rows, for the stack of a night and that of a reference.

A band needs only its own rows of the frames: memory is set by its height, not by their number. It
is made of tiles of fixed height whose sums do not know of the band, so that its height changes no
bit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nightloom.errors import FrameError
from nightloom.image.calibrate import MASK_BAD, calibrate
from nightloom.image.detect import Background, background_image
from nightloom.image.stack import Stack, add_frame, empty_stack
from nightloom.reduce.detection import CalibratedFrame, gain_of
from nightloom.reduce.masters import calibration_of, saturation_of
from nightloom.reduce.overscan import data_of, offset_with_levels
from nightloom.reduce.pixels import pixels_of

TILE_ROWS = 32
BAND_TILES = 8
CLIP_SIGMA = 4.0
CLIP_SLOPE = 0.3  # of the mean: what seeing may change on the flank of a star
MIN_CLIPPED = 3

log = logging.getLogger("nightloom")
Rows = tuple[int, int]
Planes = NDArray[np.float32]  # mean and weight [2, row, x]


@dataclass(frozen=True, slots=True)
class Placement:
    """A frame as it enters a stack; matrix [2, 3]: the stack's grid -> frame."""

    index: int  # among the frames that it is given with
    matrix: NDArray[np.float64]
    scale: float  # makes its stars as bright as in the frame that the stack's electrons are of
    weight: float
    background_e: float | Background


def bands_of(ny: int, *, tiles: int = BAND_TILES) -> tuple[Rows, ...]:
    """Bands of so many tiles over all rows: first, last + 1."""
    rows = tiles * TILE_ROWS
    return tuple((first, min(first + rows, ny)) for first in range(0, ny, rows))


def stack_band(
    frames: Sequence[CalibratedFrame], places: Sequence[Placement], band: Rows, *, trim_px: int
) -> tuple[Planes, tuple[str, ...]]:
    """Mean and weight [2, row, x] of a band that begins with a tile, and the frames in it.

    Frames are clipped against each other where there are at least three. One whose rows can't be
    read is left out, with a line in the log.
    """
    nx = frames[0].frame.nx
    tiles = [(a, min(a + TILE_ROWS, band[1])) for a in range(band[0], band[1], TILE_ROWS)]
    plain = [empty_stack(b - a, nx) for a, b in tiles]
    used = [p for p in places if _add(frames, p, band, tiles, plain, None, trim_px)]
    sums = plain
    if len(used) >= MIN_CLIPPED:
        sums = [empty_stack(b - a, nx) for a, b in tiles]
        for placed in used:
            _add(frames, placed, band, tiles, sums, plain, trim_px)
    mean = np.vstack([stack.mean for stack in sums])
    weight = np.vstack([stack.weight for stack in sums])
    names = tuple(frames[placed.index].frame.path for placed in used)
    return np.stack([mean, weight]).astype(np.float32), names


def stacked(
    frames: Sequence[CalibratedFrame], places: Sequence[Placement], *, trim_px: int
) -> tuple[Planes, tuple[str, ...]]:
    """Mean and weight [2, y, x] of all bands, one after the other, and the frames in them."""
    ny, nx = frames[0].frame.ny, frames[0].frame.nx
    planes = np.empty((2, ny, nx), np.float32)
    names: dict[str, None] = {}
    for band in bands_of(ny):
        planes[:, slice(*band)], used = stack_band(frames, places, band, trim_px=trim_px)
        names |= dict.fromkeys(used)
    return planes, tuple(names)


def _add(
    frames: Sequence[CalibratedFrame], placed: Placement, band: Rows, tiles: Sequence[Rows],
    sums: Sequence[Stack], against: Sequence[Stack] | None, trim_px: int,
) -> bool:  # fmt: skip
    """Add a frame's rows to the sums of a band's tiles; false where they can't be read."""
    item = frames[placed.index]
    rows = _rows_of(placed.matrix, band, item)
    try:
        pixels, mask = _calibrated_rows(item, rows, trim_px=trim_px)
    except FrameError as error:
        log.warning("not stacked: %s", error)
        return False
    pixels -= _background(placed, rows, item)
    for k, tile in enumerate(tiles):
        first, stop = _rows_of(placed.matrix, tile, item)
        cut = slice(first - rows[0], stop - rows[0])
        moved = placed.matrix.copy()  # from rows of the tile to rows of its cut
        moved[:, 2] += moved[:, 1] * tile[0]
        moved[1, 2] -= first
        add_frame(
            sums[k], pixels[cut], mask[cut], moved, weight=placed.weight, scale=placed.scale,
            against=None if against is None else against[k], sigma=CLIP_SIGMA, slope=CLIP_SLOPE,
        )  # fmt: skip
    return True


def _background(
    placed: Placement, rows: Rows, item: CalibratedFrame
) -> np.float32 | NDArray[np.float32]:
    """The sky beneath some rows of a frame."""
    sky, n_rows = placed.background_e, rows[1] - rows[0]
    if isinstance(sky, Background):
        return background_image(sky, n_rows, item.frame.nx, first_row=rows[0])
    return np.float32(sky)


def _rows_of(matrix: NDArray[np.float64], rows: Rows, item: CalibratedFrame) -> Rows:
    """Rows of a frame that some rows of the stack are interpolated from."""
    x, y = np.meshgrid([0, item.frame.nx - 1], [rows[0], rows[1] - 1])
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    first = int(np.clip(np.floor(v.min()) - 1, 0, item.frame.ny))
    return first, int(np.clip(np.floor(v.max()) + 3, first, item.frame.ny))


def _calibrated_rows(
    item: CalibratedFrame, rows: Rows, *, trim_px: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Electrons and mask of some rows of a frame, as `expose` makes them of all."""
    frame, cut = item.frame, slice(*rows)
    calibration = calibration_of(item.paths, frame.exposure_s)
    raw = pixels_of(frame, rows=cut)
    gain = gain_of(frame, calibration)
    offset = None if calibration.offset is None else calibration.offset[cut]
    pixels, mask = calibrate(
        raw,
        offset=offset_with_levels(raw, frame, offset, first_row=rows[0]),
        inverse_flat=None if calibration.inverse_flat is None else calibration.inverse_flat[cut],
        bad=None if calibration.bad is None else calibration.bad[cut],
        gain_e_per_adu=gain if np.isfinite(gain) else 1.0,
        saturation_adu=saturation_of(frame, raw.dtype),
        nonlinear_adu=item.instrument.nonlinear_adu,
    )
    data = data_of(frame)
    y = np.arange(*rows)
    x = np.arange(frame.nx)
    inside_y = (y >= data.y0 + trim_px) & (y < data.y1 - trim_px)
    inside_x = (x >= data.x0 + trim_px) & (x < data.x1 - trim_px)
    mask[~(inside_y[:, None] & inside_x)] |= np.uint8(MASK_BAD)
    return pixels, mask
