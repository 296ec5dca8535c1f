"""Calibration in one pass, its mask, and the maps of bad pixels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.calibrate import (
    MASK_BAD,
    MASK_NAN,
    MASK_NONLINEAR,
    MASK_SATURATED,
    bad_from_dark,
    bad_from_flat,
    calibrate,
    pair_gain,
    variance,
)

DTYPES = ("<u2", ">u2", "<i2", ">i2", "<i4", ">i4", "<f4", ">f4", ">f8", "u1")
PLAIN = {
    "offset": None,
    "inverse_flat": None,
    "bad": None,
    "gain_e_per_adu": 1.0,
    "saturation_adu": None,
    "nonlinear_adu": None,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_raw_type_gives_the_closed_form(dtype):
    values = np.arange(12).reshape(3, 4) * 10
    raw = values.astype(dtype)
    raw.flags.writeable = False
    offset = np.full((3, 4), 25.0)
    inverse_flat = np.linspace(0.5, 2.0, 12).reshape(3, 4)
    pixels, mask = calibrate(
        raw, **{**PLAIN, "offset": offset, "inverse_flat": inverse_flat, "gain_e_per_adu": 1.5}
    )
    assert pixels.dtype == np.float32
    assert mask.dtype == np.uint8
    assert_allclose(pixels, (values - 25.0) * inverse_flat * 1.5, rtol=1e-6)
    assert not mask.any()


def test_absent_planes_are_nothing_and_views_are_accepted():
    frame = np.arange(48, dtype=np.uint16).reshape(6, 8)
    pixels, mask = calibrate(frame[1:5, ::2], **PLAIN)
    assert_array_equal(pixels, frame[1:5, ::2])
    assert not mask.any()


def test_negatives_stay_and_the_sky_stays_unbiased():
    rng = np.random.default_rng(1)
    raw = np.round(rng.normal(302.0, 5.0, (300, 300))).astype(np.uint16)
    pixels, mask = calibrate(raw, **{**PLAIN, "offset": np.full(raw.shape, 300.0)})
    assert (pixels < 0).sum() > 20_000
    assert pixels.mean() == pytest.approx(2.0, abs=0.06)
    assert not mask.any()


def test_levels_are_of_the_instrument_and_the_value_is_kept():
    raw = np.array([[100, 15_999, 16_000, 16_383], [0, 40_000, 9_999, 10_000]], dtype=np.uint16)
    pixels, mask = calibrate(
        raw, **{**PLAIN, "saturation_adu": 16_000, "nonlinear_adu": 10_000, "gain_e_per_adu": 2.0}
    )
    both = MASK_SATURATED | MASK_NONLINEAR
    assert_array_equal(mask, [[0, MASK_NONLINEAR, both, both], [0, both, 0, MASK_NONLINEAR]])
    assert_array_equal(pixels, 2.0 * raw)


def test_the_level_is_the_raw_one_not_the_calibrated_one():
    raw = np.array([[900, 1_100]], dtype=np.uint16)
    _, mask = calibrate(
        raw, **{**PLAIN, "offset": np.full((1, 2), 500.0), "saturation_adu": 1_000.0}
    )
    assert_array_equal(mask, [[0, MASK_SATURATED]])


def test_what_is_no_number_is_nan_and_marked():
    raw = np.array([[1.0, np.nan, np.inf, 4.0, 5.0]], dtype=np.float32)
    inverse_flat = np.array([[1.0, 1.0, 1.0, np.nan, np.inf]])
    bad = np.array([[1, 1, 0, 0, 0]])
    pixels, mask = calibrate(raw, **{**PLAIN, "inverse_flat": inverse_flat, "bad": bad})
    assert_array_equal(pixels, [[1.0, np.nan, np.nan, np.nan, np.nan]])
    assert_array_equal(mask, [[MASK_BAD, MASK_BAD | MASK_NAN, MASK_NAN, MASK_NAN, MASK_NAN]])


def test_all_nan_and_all_saturated_frames_are_defined():
    pixels, mask = calibrate(np.full((4, 5), np.nan), **{**PLAIN, "saturation_adu": 9.0})
    assert np.isnan(pixels).all()
    assert (mask == MASK_NAN).all()
    pixels, mask = calibrate(np.full((4, 5), 9, np.uint8), **{**PLAIN, "saturation_adu": 9.0})
    assert (pixels == 9).all()
    assert (mask == MASK_SATURATED).all()


def test_wrong_shapes_and_types_are_refused():
    with pytest.raises(ValueError, match="offset is"):
        calibrate(np.zeros((3, 4)), **{**PLAIN, "offset": np.zeros((4, 3))})
    with pytest.raises(ValueError, match="raw must be"):
        calibrate(np.zeros((3, 4, 2)), **PLAIN)
    with pytest.raises(ValueError, match="raw must be"):
        calibrate(np.zeros((3, 4), complex), **PLAIN)


def test_hot_pixels_are_found_in_amplifier_glow_that_is_not():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:200, :300]
    dark = 10.0 + 200.0 * np.exp(-(x + y) / 60.0) + rng.normal(0, 1, y.shape)
    hot = np.zeros(dark.shape, bool)
    hot[rng.integers(0, 200, 40), rng.integers(150, 300, 40)] = True
    dark[hot] += 100.0
    dark[5, 7] = np.nan
    found = bad_from_dark(dark) == MASK_BAD
    assert found[hot].all()
    assert found[5, 7]
    assert (found & ~hot).sum() <= 2


def test_unsteady_pixels_are_found_by_their_noise():
    noise = np.full((80, 80), 3.0) + np.random.default_rng(3).normal(0, 0.2, (80, 80))
    noise[11, 12] = 30.0
    found = bad_from_dark(np.zeros((80, 80)), noise=noise)
    assert np.argwhere(found).tolist() == [[11, 12]]
    with pytest.raises(ValueError, match="noise is"):
        bad_from_dark(np.zeros((80, 80)), noise=noise[:5])


def test_a_dark_of_equal_integers_has_no_hot_pixels_but_the_hot_one():
    dark = np.random.default_rng(4).integers(100, 103, (64, 64)).astype(np.float32)
    dark[3, 4] = 150
    assert np.argwhere(bad_from_dark(dark)).tolist() == [[3, 4]]


def test_dead_and_low_flat_pixels_are_bad_and_vignetting_is_not():
    y, x = np.mgrid[:256, :256]
    flat = 30_000.0 * (1.0 - 0.7 * ((x - 128) ** 2 + (y - 128) ** 2) / 2 / 128**2)
    flat *= np.random.default_rng(5).normal(1.0, 0.01, flat.shape)
    for (row, column), value in {
        (3, 4): 0.0, (50, 60): np.nan, (128, 128): 9_000.0, (200, 90): -1.0, (90, 91): 60_000.0
    }.items():  # fmt: skip
        flat[row, column] = value
    found = np.argwhere(bad_from_flat(flat)).tolist()
    assert found == [[3, 4], [50, 60], [90, 91], [128, 128], [200, 90]]


def test_a_flat_without_light_is_all_bad():
    assert (bad_from_flat(np.zeros((70, 70))) == MASK_BAD).all()
    assert (bad_from_flat(np.full((70, 70), np.nan)) == MASK_BAD).all()


@pytest.mark.parametrize("gain", [0.4, 1.6, 8.0])
def test_gain_of_two_flats_is_that_of_their_photons(gain: float) -> None:
    rng = np.random.default_rng(5)
    pattern = 1 + 0.05 * rng.standard_normal((200, 250))
    flats = [
        rng.poisson(level * gain * pattern) / gain + rng.normal(0, 6.0, pattern.shape)
        for level in (18000.0, 9000.0)
    ]
    found = pair_gain(flats[0], flats[1], read_noise_adu=6.0)
    assert found == pytest.approx(gain, rel=0.03)


def test_gain_of_flats_without_light_is_unknown() -> None:
    dark = np.zeros((10, 10))
    assert np.isnan(pair_gain(dark, dark, read_noise_adu=1.0))


def test_variance_is_the_sum_of_its_terms() -> None:
    pixels = np.array([[900.0, -50.0, np.nan]], dtype=">f4")
    pixels.flags.writeable = False
    inverse_flat = np.array([[2.0, 2.0, 2.0]])
    found = variance(
        pixels, inverse_flat=inverse_flat, gain_e_per_adu=np.sqrt(12.0), read_noise_e=3.0,
        dark_e=5.0, offset_err_e=np.array([[1.0, 2.0, 1.0]]), flat_err=0.01,
    )  # fmt: skip
    # Raw signals of 450 and -25 electrons; what is of the raw pixel is doubled by the flat.
    expected = [4 * (450 + 5 + 9 + 1 + 1) + 9.0**2, 4 * (0 + 5 + 9 + 1 + 4) + 0.5**2, np.nan]
    assert found.dtype == np.float32
    assert_allclose(found[0], expected, rtol=1e-6)
    plain = variance(pixels, inverse_flat=None, gain_e_per_adu=1.0, read_noise_e=0.0)
    assert_allclose(plain[0], [900 + 1 / 12, 1 / 12, np.nan], rtol=1e-6)


@pytest.mark.parametrize("gain", [0.5, 1.6, 4.0])
def test_variance_is_that_of_simulated_frames(gain: float) -> None:
    """Light through a flat, dark current, bias and dark with noise, counts cut to integers."""
    rng = np.random.default_rng(int(10 * gain))
    shape, n = (40, 50), 400
    light = np.linspace(0, 2000, shape[1]) * np.ones(shape)
    flat = np.linspace(0.6, 1.3, shape[0])[:, None] * np.ones(shape)
    offset_err, flat_err, dark_e, read_noise_e = 1.5, 0.01, 12.0, 5.0
    values = np.empty((n, *shape))
    for k in range(n):
        electrons = rng.poisson(light * flat + dark_e) + rng.normal(0, read_noise_e, shape)
        raw = np.rint(electrons / gain + 300).astype(np.uint16)
        offset = 300 + (dark_e + rng.normal(0, offset_err, shape)) / gain
        inverse_flat = 1 / (flat * (1 + rng.normal(0, flat_err, shape)))
        values[k], _ = calibrate(
            raw, **{**PLAIN, "offset": offset, "inverse_flat": inverse_flat,
                    "gain_e_per_adu": gain},
        )  # fmt: skip
    stated = variance(
        values.mean(axis=0), inverse_flat=1 / flat, gain_e_per_adu=gain, dark_e=dark_e,
        read_noise_e=read_noise_e, offset_err_e=offset_err, flat_err=flat_err,
    )  # fmt: skip
    ratio = values.var(axis=0, ddof=1) / stated
    for part in (ratio[:, :10], ratio[:, -10:], ratio[:8], ratio[-8:]):
        assert part.mean() == pytest.approx(1.0, abs=0.02)
    assert_allclose(values.mean(axis=(0, 1)), light[0], atol=3.0)


def test_variance_refuses_other_shapes_and_gains() -> None:
    pixels = np.ones((3, 4))
    with pytest.raises(ValueError, match="inverse_flat"):
        variance(pixels, inverse_flat=np.ones(4), gain_e_per_adu=1.0, read_noise_e=1.0)
    for gain in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="gain"):
            variance(pixels, inverse_flat=None, gain_e_per_adu=gain, read_noise_e=1.0)
