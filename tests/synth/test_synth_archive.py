"""The archive on disk: the same bytes, true headers, a configuration that loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from nightloom.config import load_config
from nightloom.errors import ConfigError
from nightloom.synth.archive import write_archive
from nightloom.synth.headers import sexagesimal
from nightloom.synth.truth import SynthSpec

SPEC = SynthSpec(
    n_fields=2,
    n_nights=2,
    frames_per_night=6,
    ny=128,
    nx=160,
    n_stars=20,
    drift_px=8,
    n_bias=2,
    n_dark=2,
    n_flat=2,
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, SPEC)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_processes_write_the_same_bytes_as_one(archive: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "two", SPEC, n_processes=2)
    assert contents(tmp_path / "two") == contents(archive)
    assert len(contents(archive)) == 2 * (6 + 12) + 5


def test_another_seed_makes_another_sky(archive: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "b", SynthSpec(n_nights=1, frames_per_night=1, ny=64, nx=64, seed=2))
    assert (tmp_path / "b/catalogue.ecsv").read_bytes() != (archive / "catalogue.ecsv").read_bytes()


def test_the_configuration_loads_and_names_what_is_there(archive: Path) -> None:
    config = load_config(archive / "nightloom.toml")
    assert config.archive.frames == ("frames",)
    assert [path.name for path in config.catalog_paths()] == ["catalogue.ecsv"]
    assert all(path.is_file() for path in config.catalog_paths())
    names = [target.name for target in config.target]
    assert names == [f"Synth-{k} {kind}" for k in (1, 2) for kind in ("transit", "variable")]
    stars = Table.read(archive / "truth/stars.ecsv")
    transits = stars[stars["kind"] == "transit"]
    np.testing.assert_allclose([config.target[0].ra, config.target[2].ra], transits["ra_deg"])
    instrument = config.instrument["synthetic"]
    assert instrument.read_noise_e == SPEC.instrument.read_noise_e
    header = fits.getheader(archive / "frames/2024-10-01/light/Synth-1_R_0001.fits")
    assert all(header[key] == value for key, value in instrument.match.items())


def test_headers_are_true_in_both_dialects(archive: Path) -> None:
    frames = Table.read(archive / "truth/frames.ecsv")
    assert len(frames) == 24
    for row in frames:
        with fits.open(archive / "frames" / row["path"]) as hdus:
            hdus.verify("exception")
            header, pixels = hdus[0].header, hdus[0].data
        assert pixels.shape == (SPEC.ny, SPEC.nx)
        assert pixels.dtype == np.uint16
        start = np.datetime64(header["DATE-OBS"], "ms").astype(np.int64) / 86_400_000
        mid = start + header["EXPTIME"] / 2 / 86400
        assert abs(mid + 2440587.5 - row["jd_utc"]) * 86400 < 1e-4
        assert header["OBJECT"] == row["field"]
        assert header["FILTER"] == row["filter"]
        assert header["XPIXSZ"] == 9.0
        assert header["EGAIN"] == 1.4
        maxim = row["night"] == "2024-10-01"
        assert header["IMAGETYP"] == ("Light Frame" if maxim else "LIGHT")
        assert ("MaxIm" if maxim else "N.I.N.A.") in header["SWCREATE"]
        assert abs(header["AIRMASS"] - row["airmass"]) < 1e-5
        centre = {"Synth-1": (11.0, 28.3), "Synth-2": (0.0, 26.8)}[row["field"]]
        if maxim:
            assert header["SITELONG"] == "-16 30 36"
            assert header["OBJCTRA"] == {11.0: "00 44 00.00", 0.0: "00 00 00.00"}[centre[0]]
            assert abs(header["JD"] + 30 / 86400 - row["jd_utc"]) * 86400 < 1e-3
        else:
            assert (header["RA"], header["DEC"]) == centre
            assert header["SITELONG"] == -16.51
            assert header["GAIN"] == 100
            local = np.datetime64(header["DATE-LOC"]) - np.datetime64(header["DATE-OBS"])
            assert local == np.timedelta64(1, "h")  # summer time of the Canary Islands
        assert not any(key in header for key in ("CRVAL1", "CTYPE1", "CD1_1"))


def test_calibration_frames_say_what_they_are(archive: Path) -> None:
    said = {
        (path.parent.name, night.name): fits.getheader(path)["IMAGETYP"]
        for night in (archive / "frames").iterdir()
        for path in night.rglob("*_001.fits")
    }
    assert said == {
        ("bias", "2024-10-01"): "Bias Frame",
        ("dark", "2024-10-01"): "Dark Frame",
        ("flat", "2024-10-01"): "Flat Field",
        ("bias", "2024-10-02"): "BIAS",
        ("dark", "2024-10-02"): "DARK",
        ("flat", "2024-10-02"): "FLAT",
    }
    dark = fits.getheader(archive / "frames/2024-10-02/dark/dark_001.fits")
    assert dark["EXPOSURE"] == SPEC.exposure_s
    assert "OBJECT" not in dark


def test_truth_on_disk_has_a_row_for_every_frame_and_star(archive: Path) -> None:
    frames = Table.read(archive / "truth/frames.ecsv")
    stars = Table.read(archive / "truth/stars.ecsv")
    catalogue = Table.read(archive / "catalogue.ecsv")
    assert catalogue.meta["epoch"] == 2016.0
    assert catalogue["pmra"].unit == "mas / yr"
    assert len(catalogue) == len(stars)
    with np.load(archive / "truth/fluxes.npz") as truth:
        for name in ("Synth-1", "Synth-2"):
            mine = frames[frames["field"] == name]
            assert list(truth[f"{name}.path"]) == list(mine["path"])
            shape = (len(mine), (stars["field"] == name).sum())
            assert truth[f"{name}.flux_e"].shape == shape
            assert truth[f"{name}.x_px"].shape == truth[f"{name}.y_px"].shape == shape
            assert (truth[f"{name}.flux_e"] > 0).all()


def test_an_archive_is_never_written_over(archive: Path) -> None:
    with pytest.raises(ConfigError, match="holds an archive already"):
        write_archive(archive, SPEC)


@pytest.mark.parametrize(
    ("value", "seconds", "text"),
    [
        (0.73333333333, 2, "00 44 00.00"),
        (12.99999999, 0, "13 00 00"),
        (5.508333333, 1, "05 30 30.0"),
    ],
)
def test_sexagesimal_carries_what_it_rounds(value: float, seconds: int, text: str) -> None:
    assert sexagesimal(value, seconds=seconds) == text
