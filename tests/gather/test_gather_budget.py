"""The noise budget against frames and light curves whose every error is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nightloom.gather.budget import ERROR_NAMES, Measured, error_terms, noise_budget
from nightloom.gather.ensemble import differential, weights_for
from nightloom.image.aperture import aperture_sums, flat_errors, flux_errors, flux_errors_from_rms
from nightloom.sky.scintillation import scintillation

N, FLUX, SKY, SKY_ERR, RADIUS, FWHM = 50, 40000.0, 500.0, 2.0, 6.3, 3.5
GAIN, READ, DARK, FLAT = 1.5, 8.0, 30.0, 0.01
AREA = np.pi * RADIUS**2
OWN = ("err_star", "err_pixels", "err_sky_estimate", "err_flat")


def star(**known: float) -> Measured:
    values = {
        "flux_e": FLUX, "flux_err_e": 300.0, "background_e": SKY, "background_err_e": SKY_ERR,
        "radius_px": RADIUS, "fwhm_px": FWHM, "gain_e_per_adu": GAIN, "read_noise_e": READ,
        "dark_e": DARK, "flat_err": FLAT,
    }  # fmt: skip
    return Measured(**{name: np.full(N, value) for name, value in (values | known).items()})


def frame_errors(*, read_noise_known: bool) -> float:
    """The error that the pipeline gives a star of these numbers, median over sub-pixel phases."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(19.5, 20.5, (2, N))
    sigma = FWHM / 2.3548
    rows, columns = np.mgrid[:41, :41]
    found = []
    for x0, y0 in zip(x, y, strict=True):
        shape = np.exp(-((columns - x0) ** 2 + (rows - y0) ** 2) / (2 * sigma**2))
        image = (SKY + FLUX * shape / (2 * np.pi * sigma**2)).astype(np.float32)
        sums = aperture_sums(image, np.zeros(image.shape, np.uint8), [x0], [y0], [RADIUS])
        flat = flat_errors(FLAT, fwhm_px=FWHM, radii_px=[RADIUS])
        sky = {"background_e": [SKY], "background_err_e": [SKY_ERR], "flat_err": flat}
        if read_noise_known:
            errors = flux_errors(
                sums, **sky, read_noise_e=READ, gain_e_per_adu=GAIN, dark_e=DARK
            )  # fmt: skip
        else:
            errors = flux_errors_from_rms(sums, **sky, rms_e=[np.sqrt(SKY + DARK + READ**2)])
        found.append(errors[0, 0])
    return float(np.median(found))


def test_terms_in_closed_form() -> None:
    known = star(flux_err_e=frame_errors(read_noise_known=True))
    terms = error_terms(known, total=np.full(N, 0.02), is_circle=True)
    edge = 1 - 2 / (6 * RADIUS)  # of the variance: what a circle cuts carries less
    expected = {
        "err_star": 1 / np.sqrt(FLUX),
        "err_sky": np.sqrt(AREA * edge * SKY) / FLUX,
        "err_dark": np.sqrt(AREA * edge * DARK) / FLUX,
        "err_read_noise": np.sqrt(AREA * edge * (READ**2 + GAIN**2 / 12)) / FLUX,
        "err_pixels": np.sqrt(AREA * edge * (SKY + DARK + READ**2 + GAIN**2 / 12)) / FLUX,
        "err_sky_estimate": AREA * SKY_ERR / FLUX,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-9, err_msg=name)
    assert set(terms) == set(ERROR_NAMES)
    summed = np.sqrt(sum(terms[name] ** 2 for name in OWN))
    np.testing.assert_allclose(summed, terms["err_photometry"], rtol=0.01)
    both = np.hypot(terms["err_photometry"], terms["err_comparisons"])
    np.testing.assert_allclose(both, 0.02, rtol=1e-9)


def test_pixels_as_measured_where_the_read_noise_is_unknown() -> None:
    error = frame_errors(read_noise_known=False)
    terms = error_terms(
        star(read_noise_e=np.nan, flux_err_e=error), total=np.full(N, 0.02), is_circle=True
    )
    for name in ("err_sky", "err_dark", "err_read_noise"):
        assert np.isnan(terms[name]).all()
    edge = 1 - 2 / (6 * RADIUS)
    pixels = np.sqrt(AREA * edge * (SKY + DARK + READ**2)) / FLUX
    np.testing.assert_allclose(terms["err_pixels"], pixels, rtol=0.03)


def test_what_can_not_be_told_is_not_invented() -> None:
    total = np.full(N, 0.02)
    gainless = error_terms(star(gain_e_per_adu=np.nan), total=total, is_circle=True)
    weighted = error_terms(star(), total=total, is_circle=False)
    for name in OWN:
        assert np.isnan(weighted[name]).all(), name
    for name in ("err_star", "err_pixels"):
        assert np.isnan(gainless[name]).all(), name
    np.testing.assert_allclose(weighted["err_photometry"], 300 / FLUX)
    lost = error_terms(star(flux_e=0.0), total=total, is_circle=True)
    assert all(np.isnan(values).all() for values in lost.values())


def night(n: int, **known: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A night of a target among comparisons, each with photon, sky and read noise and flicker."""
    rng = np.random.default_rng(7)
    true = np.array([FLUX, 9e4, 7e4, 5e4, 4e4, 3e4, 2e4])
    air = np.linspace(1.0, 1.6, n)
    flicker = scintillation(
        aperture_m=0.3, exposure_s=30.0, airmass=air, height_m=2000.0, coefficient=1.5
    )
    edge = 1 - 2 / (6 * RADIUS)
    noise = np.sqrt(true + AREA * edge * (SKY + READ**2) + (AREA * SKY_ERR) ** 2)
    flux = true * 0.9 ** (air[:, None] - 1) * (1 + flicker[:, None] * rng.normal(size=(n, 7)))
    flux += noise * rng.normal(size=flux.shape)
    names = np.repeat("2024-10-01", n).astype(object)
    never = np.arange(7) == 0
    made = differential(
        flux,
        np.broadcast_to(noise, flux.shape),
        np.ones(flux.shape, bool),
        never=never,
        night=names,
    )
    few = {name: np.full(n, getattr(star(), name)[0]) for name in Measured.__dataclass_fields__}
    one = replace(
        Measured(**few), flux_e=flux[:, 0], flux_err_e=np.full(n, noise[0]), dark_e=np.zeros(n),
        flat_err=np.zeros(n), gain_e_per_adu=np.full(n, 0.01),
    )  # fmt: skip
    columns = error_terms(one, total=made.flux_err[:, 0] / made.flux[:, 0], is_circle=True)
    columns |= {"flux": made.flux[:, 0], "night": names, "airmass": air, "scintillation": flicker}
    share = np.sum(weights_for(made.weight, 0) ** 2)
    facts = {"aperture_kind": "px", "flux_units": "electron", "aperture_m": 0.3,
             "site_height_m": 2000.0, "comparison_share": share}  # fmt: skip
    return columns, facts | known


def test_the_budget_of_a_simulated_night_is_what_it_scatters_by() -> None:
    columns, facts = night(3000)
    budget = {t.name: t for t in noise_budget(columns, np.ones(3000, bool), facts)}
    assert not any(t.note for t in budget.values())
    value = {name: t.value for name, t in budget.items()}
    parts = (*OWN, "err_comparisons", "scintillation")
    assert value["expected"] == pytest.approx(np.sqrt(sum(value[p] ** 2 for p in parts)), rel=0.01)
    assert value["scintillation"] > 0.2 * value["expected"]
    assert value["err_comparisons"] > 0.2 * value["expected"]
    assert value["ratio"] == pytest.approx(1.0, abs=0.04)
    assert value["ratio"] == value["measured"] / value["expected"]


def test_the_budget_says_what_it_lacks() -> None:
    columns, facts = night(60, aperture_m=None, site_height_m=None)
    columns["scintillation"][:] = np.nan
    clean = np.ones(60, bool)
    budget = {t.name: t for t in noise_budget(columns, clean, facts)}
    assert (
        budget["scintillation"].note == "unknown: aperture_m of the instrument, height of the site"
    )
    assert budget["ratio"].note == budget["expected"].note == "without scintillation"
    own = np.hypot(budget["err_photometry"].value, budget["err_comparisons"].value)
    assert budget["expected"].value == pytest.approx(own)
    gainless = {t.name: t for t in noise_budget(columns, clean, facts | {"flux_units": "adu"})}
    assert np.isnan(gainless["expected"].value)
    assert "gain unknown" in gainless["expected"].note
    nothing = noise_budget(columns, ~clean, facts)
    assert all(np.isnan(t.value) for t in nothing)
