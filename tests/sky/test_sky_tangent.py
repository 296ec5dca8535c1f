"""The tangential projection against astropy's, and fits of known frames."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from nightloom.sky.tangent import Tangent, deproject, fit, header_text, middle, predict, project

NX, NY = 300, 200
degrees = st.floats(-1.0, 1.0)


@given(ra=st.floats(0.0, 359.99), dec=st.floats(-90.0, 90.0), xi=degrees, eta=degrees)
def test_the_plane_and_the_sky_are_each_others_inverse(ra, dec, xi, eta):
    there = deproject(xi, eta, ra, dec)
    back = project(np.array([there[0]]), np.array([there[1]]), ra, dec)
    assert_allclose(np.concatenate(back), [xi, eta], atol=1e-9)


def test_beyond_ninety_degrees_there_is_no_plane():
    xi, eta = project(np.array([10.0, 190.0, 110.0]), np.array([0.0, 0.0, 0.0]), 10.0, 0.0)
    assert_allclose([xi[0], eta[0]], 0.0)
    assert np.isnan([xi[1:], eta[1:]]).all()


@pytest.mark.parametrize("dec", [-90.0, -45.0, 0.0, 89.9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("n", [5, 40])
def test_a_fit_is_the_frame_and_its_header_says_so_to_the_last_digit(dec, sign, n):
    rng = np.random.default_rng(3)
    turned = np.array([[0.8, -0.6], [0.6, 0.8]]) @ np.diag([sign, 1.0]) / 3600.0
    centre = np.array([0.5 * (NX - 1), 0.5 * (NY - 1)])
    true = Tangent(359.9995, dec, np.column_stack([turned, -turned @ centre]))
    xy = rng.uniform(0.0, 200.0, (n, 2))
    plane = xy @ turned.T + true.matrix[:, 2]
    sky = np.array([deproject(xi, eta, true.ra_deg, dec) for xi, eta in plane])
    got = fit(xy, sky[:, 0], sky[:, 1], ny=NY, nx=NX)
    assert_allclose(predict(got, sky[:, 0], sky[:, 1]), xy, atol=1e-6)
    assert_allclose(got.scale_arcsec, 1.0, rtol=1e-9)
    header = header_text(got, ny=NY, nx=NX)
    assert len(header) % 80 == 0
    wcs = WCS(header)
    assert tuple(wcs.wcs.crval) == (got.ra_deg, got.dec_deg)
    assert wcs.wcs.cd.tolist() == got.matrix[:, :2].tolist()
    x, y = wcs.all_world2pix(sky[:, 0], sky[:, 1], 0)
    assert_allclose(np.column_stack([x, y]), xy, atol=1e-6)


def test_the_middle_knows_zero_hours_and_the_pole():
    ra, dec = middle(np.array([359.0, 1.0]), np.array([0.0, 0.0]))
    assert_allclose([(ra + 180.0) % 360.0, dec], [180.0, 0.0], atol=1e-9)
    assert_allclose(middle(np.array([0.0, 120.0, 240.0]), np.full(3, 89.0))[1], 90.0, atol=1e-6)
