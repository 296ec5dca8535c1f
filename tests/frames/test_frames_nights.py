"""The real nights: types, times and sites of every frame."""

from __future__ import annotations

import re
from pathlib import Path

import astropy.io.fits
import numpy as np
import pandas as pd
import pytest
from astropy.time import Time

from nightloom.config import Config
from nightloom.frames.scan import scan
from nightloom.schema.frames import empty_frames


def _scan(folder: Path, products: Path) -> pd.DataFrame:
    config = Config(archive={"frames": (str(folder),), "products": str(products)})
    return scan(config, empty_frames()).frames


def _header(row: pd.Series) -> astropy.io.fits.Header:
    return astropy.io.fits.getheader(Path(row["root"]) / row["path"])


def test_hatp32(shared_data: Path, tmp_path: Path) -> None:
    frames = _scan(shared_data / "hatp32", tmp_path)
    assert len(frames) == 142
    assert set(frames["image_type"]) == {"science"}
    assert set(frames["instrument"]) == {"cecilia-main"}
    assert set(frames["filter"]) == {"Clear"}
    assert set(frames["night"]) == {"2017-12-19"}
    assert not frames["suspect"].any()
    np.testing.assert_allclose(frames["site_lon_deg"], -110.88)
    pattern = re.compile(rb"UT-OBS  = '([0-9T:.-]+)-0000'")
    for _, row in frames.iterrows():
        start = pattern.search((Path(row["root"]) / row["path"]).read_bytes()[:5760])
        assert start is not None
        expected = Time(start[1].decode(), scale="utc").jd1, Time(start[1].decode()).jd2
        off_s = ((row["jd_utc"] - expected[0]) - expected[1]) * 86400.0 - 30.0
        assert abs(off_s) < 1e-3


def test_xo1b(shared_data: Path, tmp_path: Path) -> None:
    frames = _scan(shared_data / "xo1b", tmp_path)
    counts = frames["image_type"].value_counts().to_dict()
    assert counts == {"science": 27, "flat": 4, "bias": 3, "dark": 3}
    assert set(frames["night"]) == {"2025-06-01"}
    assert not frames["suspect"].any(), set(frames["reason"])
    science = frames[frames["image_type"] == "science"]
    assert set(science["filter"]) == {"z"}
    np.testing.assert_allclose(science["ra_deg"], 240.549, atol=2e-3)
    np.testing.assert_allclose(science["dec_deg"], 28.1696, atol=2e-3)
    np.testing.assert_allclose(science["pixel_scale_arcsec"], 0.6705, atol=4e-3)
    np.testing.assert_allclose(science["site_lon_deg"], -105.8203, atol=1e-4)
    for _, row in science.iterrows():
        start_jd = _header(row)["JD"]
        assert abs((row["jd_utc"] - start_jd) * 86400.0 - 30.0) < 0.01


def test_ogle(shared_data: Path, tmp_path: Path) -> None:
    frames = _scan(shared_data / "ogle_lmc531", tmp_path)
    assert len(frames) == 59
    assert frames["night"].nunique() == 59
    assert set(frames["filter"]) == {"I"}
    assert set(frames["image_type"]) == {"science"}
    assert not frames["suspect"].any()
    assert frames["reason"].str.contains("already calibrated by ZEROCOR, FLATCOR").all()
    assert set(frames["gain_e_per_adu"]) == {1.8}
    assert set(frames["read_noise_e"]) == {5.1}
    np.testing.assert_allclose(frames["ra_deg"], 15.0 * (4 + 52 / 60 + 22 / 3600), atol=0.02)
    for _, row in frames.iterrows():
        assert (row["jd_utc"] - _header(row)["JULDAT"]) * 86400.0 == pytest.approx(0.0, abs=0.06)
