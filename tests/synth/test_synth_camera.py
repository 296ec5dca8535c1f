"""The camera against closed forms: fluxes, noise, saturation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from nightloom.synth.archive import shoot
from nightloom.synth.camera import (
    cosmic_rays,
    expose,
    file_rng,
    make_detector,
    render,
    science_light,
)
from nightloom.synth.nights import make_world
from nightloom.synth.truth import Instrument, SynthSpec

SMALL = SynthSpec(n_nights=1, frames_per_night=6, ny=200, nx=240, n_stars=30, drift_px=8)


@given(
    dx=st.floats(-0.5, 0.5),
    dy=st.floats(-0.5, 0.5),
    fwhm_px=st.floats(1.5, 6),
    beta=st.sampled_from([2.5, 3.0, 4.0]),
    elongation=st.floats(1, 1.5),
    angle_deg=st.floats(0, 180),
)
@settings(max_examples=60, deadline=None)
def test_a_star_holds_its_flux_at_any_subpixel_phase(
    dx: float, dy: float, fwhm_px: float, beta: float, elongation: float, angle_deg: float
) -> None:
    n = 401
    image = render(
        n,
        n,
        x_px=[n // 2 + dx],
        y_px=[n // 2 + dy],
        flux_e=[1e5],
        fwhm_px=fwhm_px,
        beta=beta,
        elongation=elongation,
        angle_deg=angle_deg,
    )
    assert abs(image.sum() / 1e5 - 1) < 1.2e-4


@pytest.mark.parametrize("fwhm_px", [1.5, 2.3, 3.0, 5.0])
@pytest.mark.parametrize("elongation", [1.0, 1.4])
def test_pixels_are_integrals_of_the_moffat(fwhm_px: float, elongation: float) -> None:
    """Against 14 x 14 Gauss points in each pixel, as far as 14 px."""
    nodes, weights = np.polynomial.legendre.leggauss(14)
    at_x, at_y, angle = 14.37, 15.81, np.radians(25)
    image = render(
        31,
        31,
        x_px=[at_x],
        y_px=[at_y],
        flux_e=[1.0],
        fwhm_px=fwhm_px,
        elongation=elongation,
        angle_deg=25,
    )
    fine = (np.arange(31)[:, None] + nodes / 2).ravel()
    x, y = fine[None, :] - at_x, fine[:, None] - at_y
    along = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(elongation)
    across = (y * np.cos(angle) - x * np.sin(angle)) * np.sqrt(elongation)
    gamma = fwhm_px / 2 / np.sqrt(2 ** (1 / 3) - 1)
    profile = 2 / np.pi / gamma**2 * (1 + (along**2 + across**2) / gamma**2) ** -3
    grid = profile.reshape(31, 14, 31, 14)
    expected = np.einsum("yixj,i,j->yx", grid, weights / 2, weights / 2)
    assert_allclose(image, expected, atol=1e-5)
    assert_allclose(image[7:25, 6:24].sum(), expected[7:25, 6:24].sum(), atol=1e-5)


def test_half_of_the_peak_lies_at_half_the_fwhm() -> None:
    image = render(301, 301, x_px=[150], y_px=[150], flux_e=[1.0], fwhm_px=40, elongation=1.44)
    assert_allclose(image[150, 150 + 24] / image[150, 150], 0.5, atol=0.002)
    assert_allclose(image[150 + 17, 150] / image[150, 150], 0.5, atol=0.02)


def test_stars_off_the_frame_lend_their_wings_and_far_ones_nothing() -> None:
    wide = render(140, 140, x_px=[50.2], y_px=[46.7], flux_e=[1e6], fwhm_px=4)
    frame = render(80, 80, x_px=[-9.8, 400], y_px=[-13.3, 40], flux_e=[1e6, 1e6], fwhm_px=4)
    assert_allclose(frame, wide[60:, 60:], rtol=1e-9, atol=1e-9)
    assert frame[0, 0] > 5


def test_sky_is_added_and_shapes_must_agree() -> None:
    assert_allclose(render(5, 7, x_px=[], y_px=[], flux_e=[], fwhm_px=3, sky_e=12.5), 12.5)
    with pytest.raises(ValueError, match="must be"):
        render(5, 7, x_px=[1, 2], y_px=[1], flux_e=[1], fwhm_px=3)


@pytest.mark.parametrize("gain_e_per_adu", [0.5, 1.4, 4.0])
def test_noise_is_poisson_plus_read_noise_over_the_gain(gain_e_per_adu: float) -> None:
    camera = Instrument(gain_e_per_adu=gain_e_per_adu, read_noise_e=9.0, full_well_e=1e5)
    spec = replace(SMALL, instrument=camera, cosmic_rays=False, hot_pixels=False)
    frame = next(f for f in make_world(spec).frames if f.image_type == "flat")
    detector = make_detector(spec)
    pair = [
        expose(spec, frame, detector, light_e=5000.0, rng=np.random.default_rng(k)).astype(float)
        for k in (1, 2)
    ]
    mean_e = ((pair[0] + pair[1]) / 2 - detector.bias_adu).mean() * gain_e_per_adu
    variance_e = (pair[0] - pair[1]).var() / 2 * gain_e_per_adu**2
    rounding_e = gain_e_per_adu**2 / 12
    n = spec.ny * spec.nx
    expected = (5000.0 * detector.response["R"] + 4 * detector.dark_e_per_s).mean()
    assert_allclose(mean_e, expected, atol=5 * np.sqrt(expected / n))
    assert_allclose(variance_e, mean_e + 81 + rounding_e, rtol=5 * np.sqrt(2 / n))


def test_darks_grow_with_time_and_hot_pixels_are_where_the_map_says() -> None:
    spec = replace(SMALL, cosmic_rays=False)
    detector = make_detector(spec)
    frames = make_world(spec).frames
    bias = next(f for f in frames if f.image_type == "bias")
    dark = next(f for f in frames if f.image_type == "dark")
    dark_adu = shoot(spec, dark, detector, lights=np.empty((3, 0))).astype(float)
    bias_adu = shoot(spec, bias, detector, lights=np.empty((3, 0))).astype(float)
    excess_e = (dark_adu - bias_adu) * 1.4
    cold = ~detector.hot
    expected = 60 * detector.dark_e_per_s[cold].mean()
    assert_allclose(excess_e[cold].mean(), expected, atol=5 * 12 / np.sqrt(cold.sum()))
    assert 20 < detector.hot.sum() < 80
    assert (excess_e[detector.hot] > 60).all()


def test_saturated_stars_clip_at_the_full_well_below_the_converters_limit() -> None:
    world = make_world(SMALL)
    light = world.starlight[0]
    frame = light.frames[0]
    lights = np.stack([light.x_px[0], light.y_px[0], light.flux_e[0]])
    pixels = shoot(SMALL, frame, make_detector(SMALL), lights=lights)
    x, y = np.rint(lights[:2, 3]).astype(int)
    core = pixels[y - 1 : y + 2, x - 1 : x + 2]
    camera = SMALL.instrument
    full_adu = camera.bias_adu + camera.full_well_e / camera.gain_e_per_adu
    assert (core > camera.saturation_adu).all()
    assert_allclose(core, full_adu, atol=5 * camera.read_noise_e)
    x, y = np.rint(lights[:2, 0]).astype(int)
    assert pixels[y - 2 : y + 3, x - 2 : x + 3].max() < camera.saturation_adu


def test_a_trail_keeps_the_flux_and_stretches_the_star() -> None:
    scene = make_world(SMALL).starlight[0].frames[1].scene
    assert scene is not None
    assert scene.kind == "trailed"
    at = {"x_px": np.array([120.0]), "y_px": np.array([100.0]), "flux_e": np.array([1e5])}
    dark_sky = replace(scene, sky_e=0.0)
    image = science_light(SMALL, dark_sky, **at)
    assert_allclose(image.sum(), 1e5, rtol=2e-4)
    y, x = np.mgrid[:200, :240]
    core = image * (np.hypot(x - 120, y - 100) < 6 * scene.fwhm_px)
    covariance = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=core.ravel())
    values, vectors = np.linalg.eigh(covariance)
    assert np.sqrt(values[1] / values[0]) > 2
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) % 180
    assert_allclose(angle, scene.angle_deg, atol=1)


def test_the_raw_frame_gives_back_the_electrons_of_the_truth() -> None:
    spec = replace(SMALL, cosmic_rays=False, hot_pixels=False, trailed=False, cloud=False)
    light = make_world(spec).starlight[0]
    detector = make_detector(spec)
    pulls = []
    for row, frame in enumerate(light.frames):
        lights = np.stack([light.x_px[row], light.y_px[row], light.flux_e[row]])
        adu = shoot(spec, frame, detector, lights=lights)
        e = (adu - detector.bias_adu) * 1.4 - 60 * detector.dark_e_per_s
        others = lights.copy()
        others[2, 0] = 0
        x, y, flux = others
        assert frame.scene is not None
        rest_e = science_light(spec, frame.scene, x_px=x, y_px=y, flux_e=flux)
        left = e / detector.response["R"] - rest_e
        at_x, at_y = np.rint(lights[:2, 0]).astype(int)
        box = (slice(at_y - 30, at_y + 31), slice(at_x - 30, at_x + 31))
        noise = np.sqrt(lights[2, 0] + (rest_e[box] + 64).sum())
        pulls.append((left[box].sum() - lights[2, 0]) / noise)
    assert np.abs(pulls).max() < 3.5
    assert np.std(pulls) > 0.2


def test_cosmic_rays_leave_their_charge_and_files_differ() -> None:
    rng = np.random.default_rng(3)
    hits = cosmic_rays(SMALL, exposure_s=3000.0, rng=rng)
    assert (hits > 500).sum() > 10
    assert (hits > 0).mean() < 0.01
    frames = make_world(SMALL).frames
    draws = {file_rng(SMALL, frame).random() for frame in frames}
    assert len(draws) == len(frames)
