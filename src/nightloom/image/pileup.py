"""The level at which a camera saturates, where only its pixels tell."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_LEAST_PIXELS = 10  # at exactly the highest value of the frame
_NEAR = 0.02  # of the range above the frame's median: more pixels lie at the top than this near it
_STEP = 8  # every so many rows and columns tell the median
_TOP = 0.98  # of what the type holds: the end of the type is a level of its own


def pile_up_level(raw: NDArray[Any]) -> float:
    """Value at which the pixels of a raw frame [y, x] pile up, NaN where they do not.

    Many share exactly the highest value, which the type does not explain, and fewer lie just
    below: a converter of fewer bits than the file's. Frames of floats, and frames whose stars do
    not reach it, show none.
    """
    if raw.dtype.kind not in "iu" or not raw.size:
        return float("nan")
    top, at_top = _highest(raw.astype(raw.dtype.newbyteorder("="), copy=False))
    if top >= _TOP * np.iinfo(raw.dtype).max or at_top < _LEAST_PIXELS:
        return float("nan")
    middle = float(np.median(raw[::_STEP, ::_STEP]))
    if top <= middle:  # a frame of one value is no star field
        return float("nan")
    near = max(2.0, _NEAR * (top - middle))
    below = int(np.count_nonzero(raw >= top - near)) - at_top
    return float(top) if at_top > below else float("nan")


@njit(nogil=True, cache=True)
def _highest(raw: NDArray[Any]) -> tuple[int, int]:
    """The highest value of a frame, and how many pixels have it."""
    top, n_at_top = raw[0, 0], 0
    for y in range(raw.shape[0]):
        row = raw[y]
        highest = row[0]
        for x in range(len(row)):
            highest = max(highest, row[x])
        if highest < top:
            continue
        here = 0
        for x in range(len(row)):
            here += row[x] == highest
        n_at_top, top = (n_at_top if highest == top else 0) + here, highest
    return top, n_at_top
