"""What hypothesis draws for image functions: frames of any kind and memory layout, any places."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from numpy.typing import NDArray

from nightloom.image.calibrate import MASK_SATURATED

Array = NDArray[Any]
KINDS = (
    "noise",
    "stars",
    "constant",
    "nan",
    "some nan",
    "infinite",
    "huge",
    "saturated",
    "negative",
)
LAYOUTS = ("plain", "strided", "transposed", "reversed", "fortran")
FLOATS = ("<f4", ">f4", "<f8", ">f8")
COUNTS = (">i2", "<u2", ">u2", "<i4")


@st.composite
def frames(draw: DrawFn, *, most: int = 40) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Pixels and mask [y, x], plain; from one pixel to `most` a side."""
    ny, nx = draw(st.integers(1, most)), draw(st.integers(1, most))
    kind = draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    pixels = np.rint(rng.normal(200, 15, (ny, nx)))
    mask = np.zeros((ny, nx), dtype=np.uint8)
    if kind == "stars":
        j, i = np.indices((ny, nx))
        for x, y in ((nx / 2, ny / 2), (0, 0), (nx - 1, ny - 1)):  # one on each of two corners
            pixels += np.rint(5e3 * np.exp(-((i - x) ** 2 + (j - y) ** 2) / 4))
    elif kind in ("constant", "nan"):
        pixels[:] = draw(st.sampled_from([0.0, 7.0, -3.0])) if kind == "constant" else np.nan
    elif kind == "some nan":
        pixels[rng.random((ny, nx)) < 0.3] = np.nan
    elif kind == "infinite":
        pixels[rng.random((ny, nx)) < 0.3] = np.inf * draw(st.sampled_from([1, -1]))
    elif kind == "huge":
        pixels *= 1e30
    elif kind == "saturated":
        pixels[:], mask[:] = 65535, MASK_SATURATED
    elif kind == "negative":
        pixels -= 500
    if draw(st.booleans()):
        mask |= (rng.random((ny, nx)) < 0.2) * rng.integers(1, 32, (ny, nx), dtype=np.uint8)
    return pixels.astype(np.float32), mask


def laid_out(array: Array, *, layout: str, dtype: str = "") -> Array:
    """The same numbers read-only in another memory layout and type."""
    values = array.astype(dtype or array.dtype)
    match layout:
        case "strided":
            wide = np.zeros([2 * n for n in values.shape], values.dtype)
            view = wide[tuple(slice(None, None, 2) for _ in values.shape)]
            view[...] = values
        case "transposed":
            view = np.ascontiguousarray(values.T).T
        case "reversed":
            turned = tuple(slice(None, None, -1) for _ in values.shape)
            view = np.ascontiguousarray(values[turned])[turned]
        case "fortran":
            view = np.asfortranarray(values)
        case _:
            view = values
    view.flags.writeable = False
    return view


def places(ny: int, nx: int) -> st.SearchStrategy[NDArray[np.float64]]:
    """x, y [2, star]: whole, fractional, on corners, off the frame, absurd, none at all."""
    odd = st.sampled_from(
        [np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**31, -(2.0**63), 1e9, -1.0, -0.5, 0.0, 1e-300]
    )

    def along(n: int) -> st.SearchStrategy[float]:
        inside = st.floats(-3.0, n + 3.0)
        whole = st.integers(-1, n).map(float)
        return st.one_of(inside, whole, odd, st.sampled_from([n - 1.0, n - 0.5, n / 2]))

    star = st.tuples(along(nx), along(ny))
    return st.lists(star, max_size=5).map(lambda xy: np.array(xy, dtype=float).reshape(-1, 2).T)
