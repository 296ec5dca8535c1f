"""Scintillation against the formula everybody quotes and against what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from nightloom.sky.scintillation import scintillation


@pytest.mark.parametrize("aperture_m", [0.15, 0.5, 1.0, 4.2])
@pytest.mark.parametrize("height_m", [0.0, 2400.0])
def test_youngs_own_formula_with_a_coefficient_of_one(aperture_m: float, height_m: float) -> None:
    """0.09 D^(-2/3) X^1.75 (2 t)^(-1/2) exp(-h / 8000), D in cm, of the rms; at the zenith the
    metric one with C = 1 is 7 % above it (Osborn et al. 2015, section 2.3)."""
    here = scintillation(
        aperture_m=aperture_m, exposure_s=10.0, airmass=1.0, height_m=height_m, coefficient=1.0
    )
    young = 0.09 * (100 * aperture_m) ** (-2 / 3) / np.sqrt(20.0) * np.exp(-height_m / 8000)
    assert here == pytest.approx(1.07 * young, rel=0.01)


def test_numbers_by_hand() -> None:
    """1 m at sea level, 1 s: 3.16 mmag times C; 4.2 m at 2400 m, 10 s, airmass 2."""
    unit = scintillation(aperture_m=1, exposure_s=1, airmass=1, height_m=0, coefficient=1.5)
    assert unit == pytest.approx(1.5 * 0.00316228, rel=1e-5)
    large = scintillation(aperture_m=4.2, exposure_s=10, airmass=2, height_m=2400, coefficient=1.3)
    # 1.3 x 3.16228e-3 x 4.2^(-2/3) = 1.57924e-3; / sqrt(10) x 2^1.5 = 1.41252e-3; x e^-0.3
    assert large == pytest.approx(1.04642e-3, rel=1e-4)


def test_scaling_and_what_is_unknown() -> None:
    known = {"aperture_m": 0.5, "exposure_s": 30.0, "airmass": 1.2, "height_m": 500.0,
             "coefficient": 1.5}  # fmt: skip
    base = scintillation(**known)
    assert scintillation(**known | {"exposure_s": 120.0}) == pytest.approx(base / 2)
    assert scintillation(**known | {"aperture_m": 4.0}) == pytest.approx(base / 4)
    assert scintillation(**known | {"airmass": 2.4}) == pytest.approx(base * 2**1.5)
    for name in known:
        assert np.isnan(scintillation(**known | {name: np.nan})), name
    for name in set(known) - {"height_m"}:
        assert np.isnan(scintillation(**known | {name: 0.0})), name
    of_night = scintillation(**known | {"airmass": np.array([1.2, np.nan, 1.2])})
    np.testing.assert_array_equal(of_night, [base, np.nan, base])
