"""Real files with odd headers: what a careful reader says of each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import astropy.io.fits
import numpy as np
import pandas as pd
import pytest

from nightloom.config import Config
from nightloom.errors import FrameError
from nightloom.frames.fits import first_image, read_hdus, read_pixels
from nightloom.frames.scan import scan
from nightloom.schema.frames import QUARANTINE, SUSPECT_BITS, empty_frames

FILTER_UNKNOWN = ""


@dataclass(frozen=True, slots=True)
class Odd:
    """What a row must say; suspects is the whole set, mid None where there is no time."""

    name: str
    suspects: str = ""
    kind: str = ""
    mid: str | None = None
    exposure_s: float = np.nan
    band: str = FILTER_UNKNOWN
    words: str = ""
    hdu: int = 0
    within_s: float = 0.02


ODD = (
    Odd("apogee_sip_wcs.fit", "", "science", "2011-09-01T02:10:05", 120, "B"),
    Odd(
        "asi178_flat.fit",
        "truncated type_guessed no_site colour",
        "flat",
        "2024-04-18T14:49:44.521",
        0.01,
        words="2097152 bytes",
    ),
    Odd(
        "dss_1976.fits.gz",
        "not_ccd type_unknown",
        "",
        "1976-03-11T18:13:00",
        4200,
        words="photographic plate",
    ),
    Odd(
        "dss_minute60.fits",
        "no_time not_ccd type_guessed",
        "science",
        None,
        3000,
        "plexi",
        "minute 60",
    ),
    Odd(
        "eso_midas_emmi.fits",
        "time_suspect type_unknown no_site",
        "",
        "1992-10-26T03:14:08",
        1200,
        words="MJD-OBS",
    ),
    Odd(
        "float64_two_hdus.fits",
        "no_time no_exposure type_unknown no_site multi_hdu",
        words="the first of 2 images",
    ),
    Odd("gzip_float64.fits.fz", "no_time no_exposure type_unknown no_site", hdu=1),
    Odd(
        "hst_stis_raw.fits",
        "not_ccd type_guessed no_site multi_hdu",
        "science",
        "1998-04-20T18:38:30",
        30,
        "Clear",
        "spectrum",
        hdu=1,
    ),
    Odd(
        "hst_wfpc2_mef.fits",
        "type_unknown no_site multi_hdu",
        "",
        "1994-05-19T15:41:16.49",
        0.23,
        "F673N",
        "the first of 4 images is used, HDU 1",
        hdu=1,
        within_s=1.0,
    ),
    Odd("hst_x0cj010ct.fit", "no_time type_unknown no_site", "", None, 723, "F4ND"),
    Odd("int64_cube.fits", "not_2d no_time no_exposure type_unknown no_site", words="(2, 3, 6)"),
    Odd(
        "iraf_m51_1987.fits",
        "no_site",
        "science",
        "1987-04-05T09:32:27",
        600,
        words="already calibrated by FF-FLAG",
    ),
    Odd("lco_table_only.fits", "no_image", words="no HDU holds an image"),
    Odd(
        "lightfield_bias.fits",
        "time_suspect type_guessed no_site",
        "bias",
        "2014-05-20T22:00:26",
        0,
        words="zone",
    ),
    Odd(
        "lightfield_dark10.fits",
        "time_suspect type_guessed no_site",
        "dark",
        "2014-05-20T21:50:17",
        9.998,
    ),
    Odd("m13_rice.fits", "no_time no_exposure type_unknown no_site", hdu=1),
    Odd("m13_hcompress.fits", "no_time no_exposure type_unknown no_site", hdu=1),
    Odd("m13_float_rice.fits", "no_time no_exposure type_unknown no_site", hdu=1),
    Odd("maxim_apogee_aligned.fit", "", "science", "2015-12-27T06:26:54", 60, "Clear"),
    Odd(
        "maxim_aspen_tiny.fit.bz2",
        "",
        "science",
        "2018-08-23T05:56:24",
        90,
        "r",
        "already calibrated",
    ),
    Odd(
        "mef_science.fits",
        "time_suspect no_site multi_hdu",
        "science",
        "1928-07-23T21:03:42",
        30,
        "B",
        "earlier than any CCD",
        hdu=1,
    ),
    Odd(
        "no_padding_saao.fits",
        "no_site",
        "science",
        "2013-07-13T00:58:48.02",
        150.04,
        "48",
        "the pixels are whole",
    ),
    Odd(
        "orion_12h_clock_light.fit",
        "no_time no_site",
        "science",
        None,
        20,
        words="twelve-hour clock",
    ),
    Odd("orion_12h_clock_flat.fit", "no_time no_site", "flat", None, 0.03, words="time_zone_h"),
    Odd("phd2_savetest.fit", "no_time no_exposure type_unknown no_site"),
    Odd("qhy_m42.fits", "no_time no_exposure type_unknown no_site"),
    Odd(
        "saao_ste3_a8280271.fits",
        "no_site",
        "science",
        "2013-07-13T00:58:48.02",
        150.04,
        "48",
    ),
    Odd(
        "sbig_h300s.fit",
        "type_guessed no_site",
        "science",
        "2018-12-03T20:16:29",
        300,
        "None",
    ),
    Odd("sdss_i.fits.fz", "no_time no_exposure type_unknown no_site", hdu=1),
    Odd(
        "tess_cube_llc.fits",
        "not_2d no_time no_exposure type_unknown time_suspect no_site",
        band="TESS",
    ),
    Odd(
        "truncated_microobs.fits",
        "truncated",
        "science",
        "2017-12-20T04:00:42.468",
        60,
        "Clear",
        "400000 bytes",
    ),
    Odd("wcs_header_only.fits", "no_image", words="no HDU holds an image"),
)


@pytest.fixture(scope="module")
def odd_frames(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    products = str(tmp_path_factory.mktemp("products"))
    config = Config(archive={"frames": (str(shared_data / "odd"),), "products": products})
    return scan(config, empty_frames()).frames.set_index("path")


def test_a_row_a_file(odd_frames: pd.DataFrame, shared_data: Path) -> None:
    files = {p.name for p in (shared_data / "odd").iterdir()} - {"README.md"}
    assert set(odd_frames.index) == files == {odd.name for odd in ODD}
    assert (odd_frames["digest"].str.len() == 32).all()


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_what_a_careful_reader_says(odd_frames: pd.DataFrame, odd: Odd) -> None:
    row = odd_frames.loc[odd.name]
    suspects = {name for name, bit in SUSPECT_BITS.items() if int(row["suspect"]) & bit}
    assert suspects == set(odd.suspects.split()), row["reason"]
    assert row["image_type"] == odd.kind
    assert row["exposure_s"] == pytest.approx(odd.exposure_s, rel=1e-12, nan_ok=True)
    assert row["filter"] == odd.band
    assert row["hdu"] == odd.hdu
    assert odd.words in row["reason"]
    if odd.mid is None:
        assert np.isnan(row["jd_utc"])
        assert row["night"] == ""
    else:
        since = datetime.fromisoformat(odd.mid) - datetime(2000, 1, 1, 12)
        off_s = (row["jd_utc"] - 2451545.0) * 86400.0 - since.total_seconds()
        assert abs(off_s) < odd.within_s


def test_what_can_be_measured_and_what_can_not(odd_frames: pd.DataFrame) -> None:
    good = odd_frames.index[(odd_frames["suspect"].to_numpy() & QUARANTINE) == 0]
    assert sorted(good) == [
        "apogee_sip_wcs.fit",
        "iraf_m51_1987.fits",
        "lightfield_bias.fits",
        "lightfield_dark10.fits",
        "maxim_apogee_aligned.fit",
        "maxim_aspen_tiny.fit.bz2",
        "mef_science.fits",
        "no_padding_saao.fits",
        "saao_ste3_a8280271.fits",
        "sbig_h300s.fit",
    ]


def test_values_beside_time_and_type(odd_frames: pd.DataFrame) -> None:
    aligned = odd_frames.loc["maxim_apogee_aligned.fit"]
    assert aligned["binning"] == 3
    assert aligned["site_lat_deg"] == pytest.approx(-31.59666667)
    assert aligned["site_lon_deg"] == pytest.approx(-64.54888889)
    assert aligned["pixel_scale_arcsec"] == pytest.approx(0.745, abs=1e-3)
    saao = odd_frames.loc["saao_ste3_a8280271.fits"]
    assert (saao["gain_e_per_adu"], saao["read_noise_e"]) == (1.9, 5.0)
    assert saao["ra_deg"] == pytest.approx(331.0334, abs=1e-3)
    assert saao["ccd_temp_c"] == pytest.approx(-92.95)
    lamp = odd_frames.loc["sbig_h300s.fit"]
    assert (lamp["gain_e_per_adu"], lamp["saturation_adu"]) == (2.69, 65535.0)
    aspen = odd_frames.loc["maxim_aspen_tiny.fit.bz2"]
    assert (aspen["ny"], aspen["nx"], aspen["object"]) == (4096, 4096, "wasp 10 b")
    assert aspen["night"] == "2018-08-22"
    assert np.isnan(odd_frames.loc["asi178_flat.fit", "gain_e_per_adu"])


def test_pixels_are_those_that_astropy_reads(odd_frames: pd.DataFrame, shared_data: Path) -> None:
    n_compared = 0
    for name in odd_frames.index[odd_frames["ny"].to_numpy() > 0]:
        if "truncated" in name or name in ("asi178_flat.fit", "maxim_aspen_tiny.fit.bz2"):
            continue
        path = shared_data / "odd" / name
        image = first_image(read_hdus(path), path=path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy complains of what is odd here
            with astropy.io.fits.open(path) as hdus:
                expected = np.squeeze(hdus[image.index].data)
        pixels = read_pixels(path, image.index)
        assert pixels.shape == expected.shape, name
        # astropy scales in single precision
        atol = 2e-7 * float(np.abs(expected.astype(np.float64)).max())
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=atol, err_msg=name)
        n_compared += 1
    assert n_compared >= 24


def test_truncated_pixels_are_not_read(shared_data: Path) -> None:
    for name in ("asi178_flat.fit", "truncated_microobs.fits"):
        with pytest.raises(FrameError, match=rf"{name}\[0\]: truncated"):
            read_pixels(shared_data / "odd" / name, 0)
