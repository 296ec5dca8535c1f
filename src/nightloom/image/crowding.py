"""Stars near brighter ones: which stand out of their light, which are blended."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nightloom.image.calibrate import Mask, Pixels
from nightloom.image.mesh import Mesh, level_at, noise_at
from nightloom.image.peaks import UNUSABLE, Floats, filter_gain
from nightloom.image.sources import GROUP, X, Y

_REACH_FWHM = 5.0  # how far the light of a brighter star is looked at; twice if saturated
_LEAST_PROMINENCE = 0.05  # of the light of the brighter star on which a fainter one stands


@njit(nogil=True, cache=True)
def _light_at(frame: Pixels, flags: Mask, mesh: Mesh, x0: int, y0: int, taps: Pixels) -> float:
    """The filter's value above the background at a pixel of the frame."""
    ny, nx = frame.shape
    reach = len(taps) - 1
    level = level_at(mesh, np.float64(x0), np.float64(y0))
    total = 0.0
    for y in range(max(0, y0 - reach), min(ny, y0 + reach + 1)):
        row, marks, line = frame[y], flags[y], 0.0
        for x in range(max(0, x0 - reach), min(nx, x0 + reach + 1)):
            if not marks[x] & UNUSABLE and abs(row[x]) < np.inf:
                line += taps[abs(x - x0)] * (row[x] - level)
        total += taps[abs(y - y0)] * line
    return total


@njit(nogil=True, cache=True)
def _parted(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    star: Floats,
    other: Floats,
    taps: Pixels,
    step_px: float,
    top: float,
    threshold: float,
) -> bool:
    """Whether the light falls far enough on the way from a star of height `top` to another."""
    far = np.hypot(other[X] - star[X], other[Y] - star[Y])
    steps = max(2, int(np.ceil(far / step_px)))
    noise = noise_at(mesh, star[X], star[Y])
    for k in range(1, steps):
        x = int(np.round(star[X] + (other[X] - star[X]) * k / steps))
        y = int(np.round(star[Y] + (other[Y] - star[Y]) * k / steps))
        light = _light_at(frame, flags, mesh, x, y, taps)
        limit = threshold * np.sqrt(noise * noise + max(light, 0.0))
        if top - light >= max(limit, _LEAST_PROMINENCE * light):
            return True
    return False


@njit(nogil=True, cache=True)
def stand_out(
    frame: Pixels,
    flags: Mask,
    mesh: Mesh,
    stars: Floats,
    taps: Pixels,
    fwhm_px: float,
    threshold_sigma: float,
) -> NDArray[np.bool_]:
    """Which of the ranked stars stand out of the light of every brighter one.

    On the way there must be a point lower by the threshold in units of the noise of sky and
    light there, in electrons, and by a part of that light. Of those in one saturated group the
    first is kept.
    """
    threshold = threshold_sigma * filter_gain(taps)
    keep = np.ones(len(stars), dtype=np.bool_)
    x, y = stars[:, X].copy(), stars[:, Y].copy()
    reach_px = _REACH_FWHM * fwhm_px
    for k in range(len(stars)):
        star = stars[k]
        top = _light_at(frame, flags, mesh, int(np.round(star[X])), int(np.round(star[Y])), taps)
        for other in range(k):
            dx, dy = x[k] - x[other], y[k] - y[other]
            same = star[GROUP] >= 0 and star[GROUP] == stars[other, GROUP]
            reach = reach_px if stars[other, GROUP] < 0 else 2.0 * reach_px
            if not keep[other] or (dx * dx + dy * dy > reach * reach and not same):
                continue
            if same or not _parted(
                frame, flags, mesh, star, stars[other], taps, 0.5 * fwhm_px, top, threshold
            ):
                keep[k] = False
                break
    return keep


@njit(nogil=True, cache=True)
def near_another(x: Floats, y: Floats, radius_px: float) -> NDArray[np.bool_]:
    """Which stars have another within the radius."""
    near = np.zeros(len(x), dtype=np.bool_)
    for k in range(len(x)):
        for other in range(k):
            dx, dy = x[k] - x[other], y[k] - y[other]
            if dx * dx + dy * dy <= radius_px * radius_px:
                near[k] = near[other] = True
    return near
