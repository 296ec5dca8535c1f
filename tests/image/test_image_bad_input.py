"""Every door of image/ with bad input: a defined result or a clear error, and nothing altered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from nightloom.image.align import Alignment, align
from nightloom.image.annulus import annulus_background, annulus_mode
from nightloom.image.aperture import aperture_sums
from nightloom.image.ballet import ballet
from nightloom.image.calibrate import (
    MASK_FILLED,
    MASK_NAN,
    bad_from_dark,
    bad_from_flat,
    calibrate,
    pair_gain,
    variance,
)
from nightloom.image.centroid import Centroids, quadratic, windowed
from nightloom.image.combine import combine, median_combine
from nightloom.image.detect import background_at, background_image, background_mesh, detect
from nightloom.image.gaussian import gaussian2d
from nightloom.image.optimal import optimal_sums
from nightloom.image.psf import PsfShape, measure_psf, radial_profile
from nightloom.image.repair import repair
from nightloom.image.stack import add_frame, empty_stack
from nightloom.image.stars import blended, peaks_and_clean_radius
from strategies import COUNTS, FLOATS, LAYOUTS, frames, laid_out, places

Array = NDArray[Any]
Results = tuple[Array, ...]
SHAPE = PsfShape(3.0, 3.0, 1.1, 20.0, 5)
SPREAD = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


def fields_of(result: Any) -> Results:
    return tuple(np.asarray(getattr(result, name)) for name in result.__slots__)


def levels(x: Array) -> Array:
    return np.full(x.shape, 200.0)


def _centroids(method: Callable[..., Centroids]) -> Callable[..., Results]:
    def run(pixels: Array, mask: Array, x: Array, y: Array) -> Results:
        found = method(pixels, mask, x, y, background_e=levels(x), fwhm_px=3.0, max_shift_px=1.5)
        ok = found.ok
        moved = np.hypot(found.x_px[ok] - x[ok], found.y_px[ok] - y[ok])
        assert (moved <= 1.5 + 1e-6).all()  # NaN is not: what is ok has a place
        assert_array_equal(found.x_px[~ok], x[~ok])
        return fields_of(found)

    return run


def _psf(pixels: Array, mask: Array, x: Array, y: Array) -> Results:
    none = np.zeros(x.shape, dtype=bool)
    return fields_of(
        measure_psf(pixels, mask, x, y, background_e=levels(x), saturated=none, blended=none)
    )


def _profile(pixels: Array, mask: Array, x: Array, y: Array) -> Results:
    return fields_of(
        radial_profile(pixels, mask, x, y, background_e=levels(x), max_radius_px=6.0, bin_px=1.0)
    )


def _found(pixels: Array, mask: Array, x: Array, y: Array) -> Results:
    background = background_mesh(pixels, mask)
    stars = detect(pixels, mask, background)
    assert np.isfinite(stars.x_px + stars.y_px + stars.flux_e).all()
    image = background_image(background, *pixels.shape)
    return *fields_of(stars), image, *background_at(background, x, y)


def _looked_at(pixels: Array, mask: Array, x: Array, y: Array) -> Results:
    return fields_of(
        peaks_and_clean_radius(
            pixels, mask, x, y, fwhm_px=3.0, flag_radius_px=4.0, max_radius_px=8.0
        )
    )


def _summed(pixels: Array, mask: Array, x: Array, y: Array) -> Results:
    sums = aperture_sums(pixels, mask, x, y, [0.4, 2.0, 7.5])
    circle = np.pi * np.array([0.4, 2.0, 7.5]) ** 2
    known = np.isfinite(x) & np.isfinite(y)
    total = sums.area_px + sums.masked_px + sums.outside_px
    np.testing.assert_allclose(total[known], np.broadcast_to(circle, total[known].shape))
    assert np.isnan(total[~known]).all()
    return fields_of(sums)


DOORS: dict[str, Callable[[Array, Array, Array, Array], Results]] = {
    "aperture_sums": _summed,
    "optimal_sums": lambda p, m, x, y: fields_of(optimal_sums(p, m, x, y, shape=SHAPE)),
    "annulus_background": lambda p, m, x, y: fields_of(
        annulus_background(p, m, x, y, inner_px=4.0, outer_px=9.0)
    ),
    "annulus_mode": lambda p, m, x, y: fields_of(
        annulus_mode(p, m, x, y, inner_px=0.0, outer_px=9.0)
    ),
    "windowed": _centroids(windowed),
    "quadratic": _centroids(quadratic),
    "gaussian2d": _centroids(gaussian2d),
    "ballet": _centroids(ballet),
    "measure_psf": _psf,
    "radial_profile": _profile,
    "detect": _found,
    "peaks_and_clean_radius": _looked_at,
}


@pytest.mark.parametrize("door", DOORS)
@SPREAD
@given(
    frame=frames(), data=st.data(), layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(FLOATS)
)
def test_any_frame_any_place_any_layout(
    door: str,
    frame: tuple[Array, Array],
    data: st.DataObject,
    layout: str,
    dtype: str,
) -> None:
    """Defined for whatever is drawn, and the same bits however it lies in memory."""
    pixels, mask = frame
    x, y = data.draw(places(*pixels.shape))
    expected = DOORS[door](pixels, mask, x, y)
    odd = laid_out(pixels, layout=layout, dtype=dtype), laid_out(mask, layout=layout)
    strange_x, strange_y = (laid_out(v, layout=layout, dtype=">f8") for v in (x, y))
    found = DOORS[door](*odd, strange_x, strange_y)
    for one, other in zip(expected, found, strict=True):
        assert_array_equal(one, other)
    again = DOORS[door](pixels, mask, x, y)  # nothing that was given has been altered
    for one, other in zip(expected, again, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("door", [name for name in DOORS if name != "detect"])
def test_counts_and_whole_places_are_taken(door: str) -> None:
    rng = np.random.default_rng(3)
    counts = rng.poisson(200, (31, 37))
    counts[14:17, 19:22] += 900
    mask = np.zeros(counts.shape, dtype=np.uint8)
    expected = DOORS[door](counts.astype(np.float32), mask, np.array([20.0]), np.array([15.0]))
    for dtype in (">i2", "<u2", "<f8", "i8"):
        found = DOORS[door](counts.astype(dtype), mask, np.array([20]), np.array([15]))
        for one, other in zip(expected, found, strict=True):
            assert_array_equal(one, other)


@pytest.mark.parametrize("door", DOORS)
def test_shapes_that_do_not_fit_are_refused(door: str) -> None:
    pixels, mask = np.ones((9, 8), np.float32), np.zeros((9, 8), np.uint8)
    one = np.array([4.0])
    bad = [(pixels, mask[:, :7], one, one), (pixels[0], mask[0], one, one)]
    if door != "detect":
        bad += [(pixels, mask, one, np.array([4.0, 4.0])), (pixels, mask, one[:, None], one)]
    for arguments in bad:
        with pytest.raises(ValueError, match=r"."):
            DOORS[door](*arguments)


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, np.inf])
def test_radii_and_widths_that_are_none_are_refused(radius: float) -> None:
    pixels, mask = np.ones((9, 8), np.float32), np.zeros((9, 8), np.uint8)
    at = pixels, mask, [4.0], [4.0]
    level = {"background_e": [1.0]}
    with pytest.raises(ValueError, match="radii"):
        aperture_sums(*at, [radius])
    for ring in (annulus_background, annulus_mode):
        with pytest.raises(ValueError, match="inner"):
            ring(*at, inner_px=3.0, outer_px=radius)
    for method in (windowed, quadratic, gaussian2d, ballet):
        for width, shift in ((radius, 1.0), (3.0, radius)):
            with pytest.raises(ValueError, match="above zero"):
                method(*at, fwhm_px=width, max_shift_px=shift, **level)
    with pytest.raises(ValueError, match="above zero"):
        radial_profile(*at, max_radius_px=radius, bin_px=1.0, **level)
    with pytest.raises(ValueError, match="above zero"):
        measure_psf(*at, saturated=[False], blended=[False], guess_fwhm_px=radius, **level)
    with pytest.raises(ValueError, match="above zero"):
        blended([1.0], [1.0], radius_px=radius)
    with pytest.raises(ValueError, match="fwhm_px"):
        detect(pixels, mask, background_mesh(pixels, mask), fwhm_px=radius)


@SPREAD
@given(frame=frames(), layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(FLOATS + COUNTS))
def test_calibration_of_any_raw_frame(frame: tuple[Array, Array], layout: str, dtype: str) -> None:
    pixels, mask = frame
    raw = pixels if dtype in FLOATS else np.clip(np.nan_to_num(pixels), 0, 30000)
    plain = {"gain_e_per_adu": 1.5, "saturation_adu": 3e4, "nonlinear_adu": None}
    expected = calibrate(raw, offset=raw, inverse_flat=raw, bad=mask, **plain)
    odd = laid_out(raw, layout=layout, dtype=dtype)
    plane, flags = laid_out(raw, layout=layout, dtype=">f8"), laid_out(mask, layout=layout)
    found = calibrate(odd, offset=plane, inverse_flat=plane, bad=flags, **plain)
    for one, other in zip(expected, found, strict=True):
        assert_array_equal(one, other)
    assert (np.isnan(found[0]) == (found[1] & MASK_NAN != 0)).all()
    spread = variance(found[0], inverse_flat=plane, gain_e_per_adu=1.5, read_noise_e=3.0)
    assert not (spread < 0).any()


@SPREAD
@given(frame=frames(), layout=st.sampled_from(LAYOUTS))
def test_bad_maps_of_any_master(frame: tuple[Array, Array], layout: str) -> None:
    pixels, _ = frame
    odd = laid_out(pixels, layout=layout, dtype=">f4")
    for find in (bad_from_dark, bad_from_flat):
        bad = find(odd)
        assert_array_equal(bad, find(pixels))
        assert bad[~np.isfinite(pixels)].all()


@SPREAD
@given(
    frame=frames(most=12), n=st.integers(1, 6), layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(("<f4", ">f4", ">i2", "<u2")), seed=st.integers(0, 99),
)  # fmt: skip
def test_stacks_of_any_frames(
    frame: tuple[Array, Array], n: int, layout: str, dtype: str, seed: int
) -> None:
    pixels, _ = frame
    rng = np.random.default_rng(seed)
    stack = np.stack([pixels + np.rint(rng.normal(0, 5, pixels.shape)) for _ in range(n)])
    stack = np.clip(np.nan_to_num(stack), 0, 30000) if dtype[1] != "f" else stack
    native = stack.astype(np.dtype(dtype).newbyteorder("="))
    odd = laid_out(native, layout=layout, dtype=dtype)
    centre = median_combine(odd)
    assert_array_equal(centre, median_combine(native))
    for one, other in zip(fields_of(combine(odd)), fields_of(combine(native)), strict=True):
        assert_array_equal(one, other)
    finite = np.isfinite(native).all(axis=0)
    assert_array_equal(centre[finite], np.median(native[:, finite], axis=0).astype(np.float32))


@SPREAD
@given(frame=frames())
def test_repair_of_any_frame(frame: tuple[Array, Array]) -> None:
    pixels, mask = frame
    mended = pixels.copy()
    left = mask.copy()
    repair(mended, left)
    assert_array_equal(mended[left == mask], pixels[left == mask])
    unchanged = left & np.uint8(255 - MASK_FILLED)
    assert ((unchanged & mask) == unchanged).all()
    with pytest.raises(ValueError, match="float32"):
        repair(pixels.astype(np.float64), mask)


@SPREAD
@given(xy=places(30, 30), layout=st.sampled_from(LAYOUTS))
def test_neighbours_of_any_list(xy: Array, layout: str) -> None:
    x, y = xy
    expected = blended(x, y, radius_px=3.0)
    odd = (laid_out(v, layout=layout, dtype=">f8") for v in (x, y))
    assert_array_equal(blended(*odd, radius_px=3.0), expected)
    with np.errstate(invalid="ignore", over="ignore"):
        away = np.array([[np.hypot(a - c, b - d) for c, d in xy.T] for a, b in xy.T])
        near = away.reshape(len(x), len(x)) <= 3.0
    np.fill_diagonal(near, False)
    assert_array_equal(expected, near.any(axis=1))


@SPREAD
@given(frame=frames(), other=frames())
def test_gain_of_any_flats(frame: tuple[Array, Array], other: tuple[Array, Array]) -> None:
    first, second = frame[0], other[0]
    if first.shape == second.shape:
        gain = pair_gain(first, second, read_noise_adu=3.0)
        assert np.isnan(gain) or gain > 0


@SPREAD
@given(ours=places(30, 30), theirs=places(30, 30), layout=st.sampled_from(LAYOUTS))
def test_lists_of_any_places_align_or_are_refused(ours: Array, theirs: Array, layout: str) -> None:
    found = align(laid_out(ours.T.copy(), layout=layout, dtype=">f8"), theirs.T)
    if isinstance(found, Alignment):
        assert np.isfinite(found.matrix).all()
    else:
        assert found.reason


@SPREAD
@given(frame=frames(), layout=st.sampled_from(LAYOUTS))
def test_a_stack_of_any_frame_holds_no_nan(frame: tuple[Array, Array], layout: str) -> None:
    pixels, mask = frame
    ny, nx = pixels.shape
    stack = empty_stack(ny, nx)
    nowhere = np.zeros((ny, nx), np.uint8)
    matrix = np.array([[1.0, 0.0, 0.4], [0.0, 1.0, -0.3]])
    add_frame(stack, laid_out(pixels, layout=layout, dtype=">f4"), nowhere, matrix, weight=1.0)
    assert np.isfinite(stack.total).all()
    add_frame(stack, pixels, np.full_like(mask, MASK_NAN), matrix, weight=1.0)
    assert np.isfinite(stack.total).all()
