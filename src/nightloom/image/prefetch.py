"""Pixels asked for before they are needed, so that nothing waits for memory when they are.

Stars lie far apart in memory: without this, what is done with the pixels of each waits for a
quarter to a half of its time. It is a hint: no value hangs on it.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from nightloom.image.calibrate import Mask, Pixels

_LINE_BYTES = 64  # what memory brings at once
_LINE_PX, _LINE_MARKS = _LINE_BYTES // 4, _LINE_BYTES


@intrinsic
def _fetch(typing_context: Any, plane: Any, row: Any, column: Any) -> Any:
    """The processor's own instruction that asks for one value's line: it does not wait for it."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, number = signature.args[0], ir.IntType(32)
        array = context.make_array(kind)(context, builder, values[0])
        place = cgutils.get_item_pointer(context, builder, kind, array, values[1:])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        function = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], function)
        # To be read, into the nearest cache, and data.
        builder.call(fetch, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(plane, types.int64, types.int64), generate


@njit(nogil=True, cache=True)
def prefetch_row(pixels: Pixels, mask: Mask, row: int, start: int, stop: int) -> None:
    """Ask for the pixels and flags of a row from start to before stop, which lie in the frame."""
    for i in range(start, stop - 1, _LINE_PX):
        _fetch(pixels, row, i)
    for i in range(start, stop - 1, _LINE_MARKS):
        _fetch(mask, row, i)
    if start < stop:
        _fetch(pixels, row, stop - 1)
        _fetch(mask, row, stop - 1)


@njit(nogil=True, cache=True)
def prefetch(
    pixels: Pixels, mask: Mask, x: float, y: float, reach_px: float, part: int, n_parts: int
) -> None:
    """Ask for one of so many parts of the rows of a square about a place, within the frame.

    In parts, as memory takes only some at a time, and then makes wait for the next.
    """
    ny, nx = pixels.shape
    if not (math.isfinite(x) and math.isfinite(y) and ny and nx):
        return
    left, right = _within(x - reach_px, nx), _within(x + reach_px, nx)
    low, high = _within(y - reach_px, ny), _within(y + reach_px, ny)
    rows = high + 1 - low
    for j in range(low + part * rows // n_parts, low + (part + 1) * rows // n_parts):
        prefetch_row(pixels, mask, j, left, right + 1)


@njit(nogil=True, cache=True)
def _within(place: float, n: int) -> int:
    return int(min(max(place, 0.0), n - 1.0))
