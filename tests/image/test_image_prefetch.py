"""Asking for pixels ahead of time reads nothing beyond the frame and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from nightloom.image.prefetch import prefetch, prefetch_row


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (3, 200), (200, 3), (70, 80)])
@pytest.mark.parametrize("place", [-1e300, -50.0, 0.0, 33.3, 199.0, 1e18, np.nan, np.inf])
def test_any_place_in_any_frame(shape: tuple[int, int], place: float) -> None:
    pixels, mask = np.ones(shape, dtype=np.float32), np.ones(shape, dtype=np.uint8)
    for reach_px in (0.5, 20.0, 1e9):
        for part in range(7):
            prefetch(pixels, mask, place, 1.0, reach_px, part, 7)
            prefetch(pixels, mask, 1.0, place, reach_px, part, 7)
    assert (pixels == 1).all()
    assert (mask == 1).all()


def test_a_part_of_a_row_or_none_of_it() -> None:
    pixels, mask = np.ones((4, 100), dtype=np.float32), np.ones((4, 100), dtype=np.uint8)
    for start, stop in ((0, 100), (99, 100), (40, 40), (100, 100), (0, 0)):
        prefetch_row(pixels, mask, 3, start, stop)
    assert (pixels == 1).all()
