"""Catalogues: what is read, what is refused and why, and where stars are years later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table
from astropy.time import Time
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.errors import ConfigError
from nightloom.sky.catalogue import Catalogue, at_epoch, read_catalogue, within


def write(
    path: Path, ra, dec, mag=None, *, pmra=None, pmdec=None, epoch: object = 2000.0, unit=()
) -> Path:
    table = Table({"ra": np.array(ra), "dec": np.array(dec)})
    table["mag"] = np.arange(len(ra), dtype=float) if mag is None else mag
    if pmra is not None:
        table["pmra"], table["pmdec"] = pmra, pmdec
    units = {"ra": "deg", "dec": "deg", "mag": "mag", "pmra": "mas / yr", "pmdec": "mas / yr"}
    for name in table.colnames:
        table[name].unit = (units | dict(unit))[name] or None
    if epoch is not None:
        table.meta["epoch"] = epoch
    table.write(path, format="ascii.ecsv")
    return path


def read_fast_movers(tmp_path: Path, ra, dec, pmra, pmdec) -> Catalogue:
    return read_catalogue([write(tmp_path / "fast.ecsv", ra, dec, pmra=pmra, pmdec=pmdec)])


def test_columns_are_read_and_unknown_motions_are_none(tmp_path):
    pmra = MaskedColumn([12.0, 99.0], mask=[False, True])
    path = write(tmp_path / "a.ecsv", [1.0, -2.0], [3.0, 4.0], pmra=pmra, pmdec=[5.0, np.nan])
    got = read_catalogue([path])
    assert_array_equal(got.ra_deg, [1.0, 358.0])
    assert_array_equal(got.dec_deg, [3.0, 4.0])
    assert_array_equal(got.pmra_mas_yr, [12.0, 0.0])
    assert_array_equal(got.pmdec_mas_yr, [5.0, 0.0])
    assert_array_equal(got.epoch_yr, [2000.0, 2000.0])
    assert not got.epoch_assumed


def test_files_keep_their_epochs_and_a_missing_one_is_told(tmp_path):
    one = write(tmp_path / "one.ecsv", [1.0], [2.0], epoch="J2016.0")
    other = write(tmp_path / "other.ecsv", [3.0], [4.0], epoch=None)
    got = read_catalogue([one, other])
    assert_array_equal(got.epoch_yr, [2016.0, 2000.0])
    assert got.epoch_assumed
    assert not read_catalogue([one]).epoch_assumed


def test_units_are_converted_and_where_absent_taken_as_meant(tmp_path):
    hours = write(tmp_path / "h.ecsv", [1.0], [2.0], unit={"ra": "hourangle"})
    bare = write(tmp_path / "b.ecsv", [1.0], [2.0], unit={"ra": "", "dec": ""})
    assert_allclose(read_catalogue([hours]).ra_deg, 15.0)
    assert_allclose(read_catalogue([bare]).ra_deg, 1.0)


def test_a_star_in_two_files_is_kept_once_at_a_common_epoch(tmp_path):
    # 250 mas a year over 16 years are 4 arcsec: only the motion tells that they are one.
    old = write(
        tmp_path / "old.ecsv", [10.0, 20.0], [60.0, 0.0], pmra=[0.0, 0.0], pmdec=[250.0, 0.0]
    )
    new = write(tmp_path / "new.ecsv", [10.0, 20.0], [60.0 + 4.0 / 3600, 2.0 / 3600], epoch=2016.0)
    got = read_catalogue([old, new])
    assert_array_equal(got.epoch_yr, [2000.0, 2000.0, 2016.0])
    assert_array_equal(got.ra_deg, [10.0, 20.0, 20.0])


def test_neighbours_across_zero_hours_and_at_the_pole_are_told_apart_by_distance(tmp_path):
    path = write(
        tmp_path / "a.ecsv",
        [359.99995, 0.00005, 0.0, 180.0, 0.001],
        [0.0, 0.0, 89.9999, 89.9999, 0.0],
    )
    assert_array_equal(read_catalogue([path]).ra_deg, [359.99995, 0.0, 0.001])


def test_real_lists_agree_on_their_common_stars(shared_data):
    tycho = shared_data / "catalogs" / "tycho2_hatp32.ecsv"
    gaia = shared_data / "catalogs" / "gaia_bright_hatp32.ecsv"
    both = read_catalogue([tycho, gaia])
    assert len(read_catalogue([tycho]).ra_deg) == 121
    assert 121 <= len(both.ra_deg) <= 123


def test_no_files_are_an_empty_catalogue():
    empty = read_catalogue([])
    assert len(empty.ra_deg) == 0
    assert len(at_epoch(empty, 2020.0).ra_deg) == 0


def test_the_digest_is_of_the_content(tmp_path):
    one = write(tmp_path / "one.ecsv", [1.0, 2.0], [3.0, 4.0])
    same = write(tmp_path / "same.ecsv", [1.0, 2.0], [3.0, 4.0])
    other = write(tmp_path / "other.ecsv", [1.0, 2.0], [3.0, 4.0], epoch=2016.0)
    assert read_catalogue([one]).digest == read_catalogue([same]).digest
    assert read_catalogue([one]).digest != read_catalogue([other]).digest


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.ecsv: no such file"):
        read_catalogue([tmp_path / "nowhere.ecsv"])


def test_what_is_no_ecsv_is_named(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("ra,dec,mag\n1,2,3\n")
    with pytest.raises(ConfigError, match=r"plain\.csv: not a readable ECSV"):
        read_catalogue([path])
    with pytest.raises(ConfigError, match=r"directory"):
        read_catalogue([tmp_path])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unit": {"ra": "km"}}, r"bad\.ecsv: ra: its unit is km \(give it in deg\)"),
        ({"unit": {"dec": "furlong"}}, r"dec: its unit is furlong"),
        ({"epoch": "yesterday"}, r"epoch: 'yesterday' is no year"),
    ],
)
def test_a_bad_unit_or_epoch_is_named(tmp_path, change, told):
    with pytest.raises(ConfigError, match=told):
        read_catalogue([write(tmp_path / "bad.ecsv", [1.0], [2.0], **change)])


def test_bad_columns_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"ra: not a column of numbers"):
        read_catalogue([write(tmp_path / "text.ecsv", ["01:02:03"], [2.0])])
    with pytest.raises(ConfigError, match=r"dec: beyond 90"):
        read_catalogue([write(tmp_path / "dec.ecsv", [1.0], [92.0])])
    path = tmp_path / "names.ecsv"
    Table({"RAJ2000": [1.0], "dec": [2.0]}).write(path, format="ascii.ecsv")
    with pytest.raises(ConfigError, match=r"names\.ecsv: ra: no such column; there are RAJ2000"):
        read_catalogue([path])


def test_motion_is_astropys_at_the_poles_and_across_zero_hours(tmp_path):
    ra = np.array([359.9999, 0.0001, 120.0, 269.45, 45.0])
    dec = np.array([10.0, -45.0, 89.0, 4.69, -89.999])
    pmra = np.array([3000.0, -3000.0, 5000.0, -801.6, 2000.0])
    pmdec = np.array([100.0, -100.0, -3000.0, 10362.4, -4000.0])
    moved = at_epoch(read_fast_movers(tmp_path, ra, dec, pmra, pmdec), 2025.5)
    expected = SkyCoord(
        ra * u.deg, dec * u.deg, distance=np.full(5, 5.0) * u.pc,
        pm_ra_cosdec=pmra * u.mas / u.yr, pm_dec=pmdec * u.mas / u.yr,
        obstime=Time(2000.0, format="jyear", scale="tdb"),
    ).apply_space_motion(new_obstime=Time(2025.5, format="jyear", scale="tdb"))  # fmt: skip
    got = SkyCoord(moved.ra_deg * u.deg, moved.dec_deg * u.deg)
    assert got.separation(expected).to_value("mas").max() < 0.5
    assert_allclose(moved.pmra_mas_yr, expected.pm_ra_cosdec.to_value("mas/yr"), atol=0.2)
    assert_allclose(moved.pmdec_mas_yr, expected.pm_dec.to_value("mas/yr"), atol=0.2)
    assert_array_equal(moved.epoch_yr, 2025.5)


def test_there_and_back_is_where_one_was(tmp_path):
    start = read_fast_movers(tmp_path, [10.0, 200.0], [80.0, -5.0], [900.0, -10.0], [50.0, 0.0])
    back = at_epoch(at_epoch(start, 2025.0), 2000.0)
    assert_allclose(back.ra_deg, start.ra_deg, atol=1e-7)
    assert_allclose(back.dec_deg, start.dec_deg, atol=1e-7)
    assert at_epoch(start, 2000.0).ra_deg.tolist() == start.ra_deg.tolist()


@pytest.mark.parametrize(("ra_deg", "dec_deg"), [(0.001, 0.0), (180.0, 89.9), (77.0, -45.0)])
def test_within_is_the_distance_on_the_sphere(tmp_path, ra_deg, dec_deg):
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0.0, 360.0, 3000), np.degrees(np.arcsin(rng.uniform(-1, 1, 3000)))
    stars = read_catalogue([write(tmp_path / "sky.ecsv", ra, dec)])
    apart = SkyCoord(ra * u.deg, dec * u.deg).separation(SkyCoord(ra_deg, dec_deg, unit="deg"))
    near = within(stars, ra_deg, dec_deg, 8.0)
    assert 0 < len(near.ra_deg) < 60
    assert_allclose(near.ra_deg, ra[apart.deg <= 8.0])
    assert len(within(stars, ra_deg, dec_deg, 180.0).ra_deg) == len(stars.ra_deg)
