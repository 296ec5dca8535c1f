"""Headers of many dialects to standard values."""

from __future__ import annotations

import math
import pickle

import pytest

from nightloom.config import Instrument
from nightloom.errors import ConfigError, FrameError
from nightloom.frames.cards import Cards, split_cards
from nightloom.frames.clock import Findings
from nightloom.frames.instrument import slug, standard_values, suspect_columns
from nightloom.frames.quantities import exposure_s, sexagesimal
from nightloom.frames.rules import check_profiles, choose_rules, dialects
from nightloom.schema.frames import COLUMN_NAMES, SUSPECT_BITS

NINA = (
    "SWCREATE= 'N.I.N.A. 3.2.0.9001 (x64)' / Software that created this file",
    "IMAGETYP= 'LIGHT'              / Type of exposure",
    "EXPTIME =                 60.0 / [s] Exposure duration",
    "DATE-LOC= '2024-10-04T15:45:05.2484567' / Time of observation (local)",
    "DATE-OBS= '2024-10-04T13:45:05.2484567' / Time of observation (UTC)",
    "DATE-AVG= '2024-10-04T13:45:35.2484567' / Averaged midpoint time (UTC)",
    "XBINNING=                    2 / X axis binning factor",
    "GAIN    =                  200 / Sensor gain",
    "OFFSET  =                    3 / Sensor gain offset",
    "EGAIN   =    0.239999994635582 / [e-/ADU] Electrons per A/D unit",
    "XPIXSZ  =                 7.52 / [um] Pixel X axis size",
    "INSTRUME= 'ZWO ASI2600MM Pro'  / Imaging instrument name",
    "TELESCOP= 'RC 16'              / Name of telescope",
    "CCD-TEMP=                 -9.8 / [degC] CCD temperature",
    "READOUTM= 'Low Noise'          / Sensor readout mode",
    "FOCALLEN=               2939.0 / [mm] Focal length",
    "RA      =     97.6344880776984 / [deg] RA of telescope",
    "DEC     =     29.6913781086925 / [deg] Declination of telescope",
    "SITEELEV=                 50.0 / [m] Observation site elevation",
    "SITELAT =                 22.3 / [deg] Observation site latitude",
    "SITELONG=               114.18 / [deg] Observation site longitude",
    "FILTER  = 'R'                  / Active filter name",
    "OBJECT  = 'M 31'               / Name of the object of interest",
    "OBJCTRA = '00 42 44'           / [H M S] RA of imaged object",
    "OBJCTDEC= '+41 16 08'          / [D M S] Declination of imaged object",
)


def _cards(*lines: str) -> Cards:
    return split_cards(b"".join(line.encode("latin-1").ljust(80) for line in lines))


def _row(*lines: str, path: str = "/archive/a.fits", **profiles: Instrument) -> dict[str, object]:
    cards = _cards(*lines)
    findings: Findings = []
    rules = choose_rules(cards, tuple(profiles.items()), {})
    row = standard_values(
        cards, rules=rules, path=path, n_own_parts=2, where="a.fits[0]", findings=findings
    )
    return row | suspect_columns(findings)


def _suspects(row: dict[str, object]) -> set[str]:
    return {name for name, bit in SUSPECT_BITS.items() if int(row["suspect"]) & bit}


def test_nina() -> None:
    row = _row(*NINA)
    assert row["suspect"] == 0, row["reason"]
    assert set(row) <= set(COLUMN_NAMES)
    assert row["image_type"] == "science"
    assert row["instrument"] == "rc-16-zwo-asi2600mm-pro"
    assert row["gain_e_per_adu"] == pytest.approx(0.24)
    assert row["read_mode"] == "Low Noise, gain 200, offset 3"
    assert row["pixel_scale_arcsec"] == pytest.approx(206.264806 * 7.52 / 2939.0)
    assert (row["ra_deg"], row["dec_deg"]) == (97.6344880776984, 29.6913781086925)
    assert (row["site_lat_deg"], row["site_height_m"]) == (22.3, 50.0)
    assert row["site_lon_deg"] == pytest.approx(114.18)
    assert (row["binning"], row["filter"], row["object"]) == (2, "R", "M 31")
    assert row["jd_utc"] == pytest.approx(2460588.0733246, abs=1e-7)  # 13:45:35.248
    assert row["ccd_temp_c"] == -9.8


def test_a_gain_without_electrons_is_a_setting() -> None:
    without = tuple(line for line in NINA if not line.startswith("EGAIN"))
    assert math.isnan(_row(*without)["gain_e_per_adu"])
    assert math.isnan(_row("GAIN    = 1.5 / Sensor gain")["gain_e_per_adu"])
    said = _row("GAIN    = 1.9 / e-/ADU", "RDNOISE = 5.0")
    assert (said["gain_e_per_adu"], said["read_noise_e"], said["read_mode"]) == (1.9, 5.0, "")
    assert _row("GAIN    = 1.8 / Readout gain [e/ADU]")["gain_e_per_adu"] == 1.8
    assert math.isnan(_row("EGAIN   = 0.0")["gain_e_per_adu"])


def test_microobservatory() -> None:
    row = _row(
        "CREATOR = 'MicroObservatory2014-05-23'",
        "DATE-OBS= '2017-12-19T18:33:43.317-0700' / Start date & time of observation, LT",
        "UT-OBS  = '2017-12-20T01:33:43.317-0000' / Universal Time at start of obs.",
        "MJD-OBS = 58107.065",
        "EXPTIME = 060.00",
        "CAMTEMP = -1",
        "TELESCOP= 'Cecilia '",
        "LATITUDE= 31.68",
        "LONGITUD= 110.88",
        path="/archive/HATP-32171220013343.FITS",
    )
    assert row["image_type"] == "science"
    assert row["suspect"] == 0, row["reason"]
    assert row["site_lon_deg"] == pytest.approx(-110.88)
    assert math.isnan(row["ccd_temp_c"])
    assert row["jd_utc"] == pytest.approx(2458107.5654319, abs=1e-7)  # 01:34:13.317


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Light Frame", "science"),
        ("LIGHT", "science"),
        ("OBJECT", "science"),
        ("object (0)", "science"),
        ("SCIENCE", "science"),
        ("EXPOSE", "science"),
        ("Dark Frame", "dark"),
        ("DARKFLAT", "dark"),
        ("Flat Dark", "dark"),
        ("Flat Field", "flat"),
        ("FLAT", "flat"),
        ("SKYFLAT", "flat"),
        ("Bias Frame", "bias"),
        ("zero", "bias"),
    ],
)
def test_types_in_headers(text: str, kind: str) -> None:
    row = _row(f"IMAGETYP= '{text}'", path="/flats/dark/bias.fits")
    assert row["image_type"] == kind
    assert not _suspects(row) & {"type_guessed", "type_unknown", "not_ccd"}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/night/Flats/a001.fits", "flat"),
        ("/data/night/x/domeflat_z_002.fits", "flat"),
        ("/data/night/lights/dark10.fits", "dark"),
        ("/data/night/BIAS/a.fits", "bias"),
        ("/data/night/flat_darks/a.fits", "dark"),
        ("/data/night/lights/XO1.fits", "science"),
    ],
)
def test_types_by_folder_and_name_are_guessed(path: str, kind: str) -> None:
    row = _row("EXPTIME = 5.0", path=path)
    assert row["image_type"] == kind
    assert "type_guessed" in _suspects(row)


def test_types_that_nothing_tells() -> None:
    assert "type_unknown" in _suspects(_row("EXPTIME = 5.0"))
    assert "type_unknown" in _suspects(_row("EXPTIME = 5.0", path="/flats/night/a/b/c.fits"))
    bias = _row("EXPTIME = 0.0")
    assert (bias["image_type"], "type_guessed" in _suspects(bias)) == ("bias", True)
    named = _row("EXPTIME = 5.0", "OBJECT  = 'M 31'", "FILTER  = 'V'")
    assert (named["image_type"], "type_guessed" in _suspects(named)) == ("science", True)


def test_spectra_and_masters_are_no_frames() -> None:
    assert "not_ccd" in _suspects(_row("OBSTYPE = 'SPECTROSCOPIC '"))
    assert "not_ccd" in _suspects(_row("IMAGETYP= 'Comp'"))
    master = _row("IMAGETYP= 'Master Dark'")
    assert (master["image_type"], "not_ccd" in _suspects(master)) == ("dark", True)
    assert "not_ccd" in _suspects(_row("IMAGETYP= 'MASTERFLAT'"))


@pytest.mark.parametrize(
    ("line", "expected_s"),
    [
        ("EXPTIME = 30", 30.0),
        ("EXPTIME = '9998    '", 9998.0),
        ("EXPTIME = '30 s'", 30.0),
        ("EXPTIME = '250ms'", 0.25),
        ("EXPOSURE= 7.0000000000000E+01 /Exposure time minutes", 4200.0),
        ("EXPOSURE= 50.0 /Observation: Exposure Minutes", 3000.0),
        ("EXPTIME = 12500 / exposure [ms]", 12.5),
        ("EXPTIME = 10000 / Exposure time in us", 0.01),
        ("EXPTIME = 6.0D+01 / [sec] Duration", 60.0),
        ("EXPTIME = -1", math.nan),
        ("EXPTIME = 'none'", math.nan),
        ("OTIME   = 600 / ACTUAL INTEGRATION TIME (SECS)", 600.0),
    ],
)
def test_exposure_times_and_their_units(line: str, expected_s: float) -> None:
    value = exposure_s(_cards(line), rules=dialects()[-1], where="a")
    assert value == pytest.approx(expected_s, rel=1e-12, nan_ok=True)


def test_an_exposure_unit_of_the_profile_wins() -> None:
    line = "EXPTIME = 2 / minutes"
    assert _row(line)["exposure_s"] == 120.0
    assert _row(line, cam=Instrument(exposure_unit="s"))["exposure_s"] == 2.0
    assert _row(line, cam=Instrument(exposure_unit="ms"))["exposure_s"] == 0.002
    assert _row(line, cam=Instrument(gain_e_per_adu=2.0))["exposure_s"] == 120.0


@pytest.mark.parametrize("line", ["EXPTIME = 12,5", "EXPTIME = '12,5'"])
def test_decimal_comma(line: str) -> None:
    with pytest.raises(FrameError) as caught:
        _row(line)
    for part in ("a.fits[0] EXPTIME", "'12,5' is not a number", "decimal_comma"):
        assert part in str(caught.value)
    assert _row(line, cam=Instrument(decimal_comma=True))["exposure_s"] == 12.5
    row = _row("EXPTIME = 5", "CCD-TEMP= '-10,5'", "IMAGETYP= 'bias'")
    assert math.isnan(row["ccd_temp_c"])
    assert "'-10,5' is not a number" in str(row["reason"])


@pytest.mark.parametrize(
    ("line", "expected_deg"),
    [
        ("RA      = '16 02 11.83' / [hms J2000]", 240.54929166666667),
        ("RA      = ' 22:04:08'", 331.03333333333336),
        ("RA      = '4:52:22.0         '", 73.09166666666667),
        ("OBJCTRA = '23 15 58.23'", 348.992625),
        ("RA      = 31.312099 / 02:05.25 Right Ascension", 31.312099),
        ("RA      = 5.648 / MIDAS", 5.648),
        ("RA      = 5.5 / [h] Observe object RA coordinate", 82.5),
        ("RA      = 5.5 / RA in hours", 82.5),
        ("RA      = '184.5'", 184.5),
        ("RA      = '12.5' / [deg]", 12.5),
        ("RA      = -10.0", 350.0),
    ],
)
def test_right_ascension(line: str, expected_deg: float) -> None:
    row = _row(line, "DEC     = '-00 30 00'")
    assert row["ra_deg"] == pytest.approx(expected_deg, abs=1e-9)
    assert row["dec_deg"] == -0.5


@pytest.mark.parametrize(
    "line",
    [
        "RA      = '12.5'",
        "RA      = '184 30 00'",
        "RA      = '16 02 11.83' / degrees",
        "RA      = '16 75 11'",
        "RA      = 'unknown'",
        "RA      = 720.0",
    ],
)
def test_right_ascension_in_doubt_is_not_guessed(line: str) -> None:
    row = _row(line)
    assert math.isnan(row["ra_deg"])
    assert "right ascension" in str(row["reason"])


def test_declination_out_of_range_and_wcs() -> None:
    assert math.isnan(_row("DEC     = '95 00 00'")["dec_deg"])
    row = _row("CTYPE1  = 'RA---TAN'", "CRVAL1  = 10.5", "CTYPE2  = 'DEC--TAN'", "CRVAL2  = -3.0")
    assert (row["ra_deg"], row["dec_deg"]) == (10.5, -3.0)
    other = _row("CTYPE1  = 'LINEAR'", "CRVAL1  = 10.5", "CTYPE2  = 'LINEAR'", "CRVAL2  = -3.0")
    assert math.isnan(other["ra_deg"])
    assert math.isnan(other["dec_deg"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-31 35 48", -31.596666666666668),
        ("+46:52:00.408", 46.86678),
        ("-00 55 31", -0.9252777777777778),
        ("32d46m49s", 32.780277777777776),
        ("70 42.5", math.nan),
        ("70 42", 70.7),
        ("64 32 56 W", -64.54888888888888),
        ("31 35 48S", -31.596666666666668),
        ("31 60 00", math.nan),
        ("north", math.nan),
        ("", math.nan),
    ],
)
def test_sexagesimal(text: str, value: float) -> None:
    assert sexagesimal(text) == pytest.approx(value, abs=1e-7, nan_ok=True)


@pytest.mark.parametrize(
    ("line", "east_deg"),
    [
        ("SITELONG= '-64 32 56'", -64.54888889),
        ("LONG-OBS= -1.05820277778E+002 / [deg +E WGS84]", -105.820277778),
        ("LONGITUD= 110.88 / west of Greenwich", -110.88),
        ("LONGITUD= 204.53 / degrees east", -155.47),
        ("SITELONG= '70 42 05 W'", -70.70138889),
        ("SITELONG= 116.863 / Observatory: Longitude", 116.863),
    ],
)
def test_longitudes_are_east(line: str, east_deg: float) -> None:
    assert _row(line)["site_lon_deg"] == pytest.approx(east_deg, abs=1e-7)


def test_a_profile_fills_in_and_wins() -> None:
    profile = Instrument(
        match={"TELESCOP": "Ceci*"},
        types={"flat": "*/Screens/*"},
        keys={"filter": "MYFILT"},
        gain_e_per_adu=2.5,
        read_noise_e=9.0,
        saturation_adu=4095.0,
        site_lat_deg=31.68,
        site_lon_deg=-110.88,
    )
    lines = ("TELESCOP= 'Cecilia '", "MYFILT  = 'Rc'", "FILTER  = 'x'", "EGAIN   = 1.0")
    row = _row(*lines, path="/data/Screens/a.fits", cecilia=profile)
    assert row["instrument"] == "cecilia"
    assert (row["image_type"], row["filter"]) == ("flat", "Rc")
    assert (row["gain_e_per_adu"], row["read_noise_e"], row["saturation_adu"]) == (2.5, 9.0, 4095.0)
    assert (row["site_lat_deg"], row["site_lon_deg"]) == (31.68, -110.88)
    assert "type_guessed" not in _suspects(row)
    other = _row("TELESCOP= 'Donald'", *lines[1:], cecilia=profile)
    assert (other["instrument"], other["filter"], other["gain_e_per_adu"]) == ("donald", "x", 1.0)


def test_a_profile_with_a_column_of_no_key_is_refused() -> None:
    check_profiles({"a": Instrument(keys={"filter": "X"})})
    with pytest.raises(ConfigError, match=r"instrument\.a\.keys\.filtr.*'filter'"):
        check_profiles({"a": Instrument(keys={"filtr": "X"})})


def test_scales_saturation_binning_and_temperatures() -> None:
    row = _row("SECPIX  = 0.26", "DATAMAX = 65535 / SATURATION LEVEL", "CCDSUM  = '2 2'")
    assert (row["pixel_scale_arcsec"], row["saturation_adu"], row["binning"]) == (0.26, 65535.0, 2)
    assert math.isnan(_row("DATAMAX = 936.0 / DATA MAX")["saturation_adu"])
    assert _row("SATURATE= 4095")["saturation_adu"] == 4095.0
    wcs = _row("CTYPE1  = 'RA---TAN'", "CDELT1  = -0.0001", "CDELT2  = 0.0004")
    assert wcs["pixel_scale_arcsec"] == pytest.approx(0.72)
    matrix = _row("CTYPE1  = 'RA---TAN'", "CD1_1   = 0.0", "CD1_2   = 1E-4", "CD2_1   = 1E-4",
                  "CD2_2   = 0.0")  # fmt: skip
    assert matrix["pixel_scale_arcsec"] == pytest.approx(0.36)
    assert math.isnan(_row("FOCALLEN= 0.0", "XPIXSZ  = 9.0")["pixel_scale_arcsec"])
    assert _row("CCD-TEMP= 180.2 / Cu block")["ccd_temp_c"] == pytest.approx(-92.95)
    assert _row("BINNING = '2*2     '")["binning"] == 2


def test_a_bias_needs_no_exposure_time() -> None:
    row = _row("IMAGETYP= 'bias'", "DATE-OBS= '2020-01-01T00:00:00'")
    assert (row["exposure_s"], row["jd_utc"], row["suspect"]) == (0.0, 2458849.5, 0)
    assert "no_exposure" in _suspects(_row("IMAGETYP= 'dark'"))


def test_slugs() -> None:
    assert slug("ACP->TCSGalilHybrid.DFM  AspenCG16") == "acp-tcsgalilhybrid-dfm-aspencg16"
    assert _row()["instrument"] == "unknown"


def test_rules_cross_processes_and_dialects_are_found() -> None:
    assert {rules.name for rules in dialects()} >= {"nina", "maxim", "microobservatory", "generic"}
    assert dialects()[-1].name == "generic"
    assert pickle.loads(pickle.dumps(dialects())) == dialects()
    assert choose_rules(_cards("SWCREATE= 'MaxIm DL Version 6.50'"), (), {}).name == "maxim"


@pytest.mark.parametrize(
    ("card", "aperture_m"),
    [
        ("APTDIA  =                203.0 / Aperture diameter of telescope in mm", 0.203),
        ("APTDIA  =                  0.0 / Aperture diameter of telescope in mm", math.nan),
        ("APTDIA  =                0.203 / nobody's telescope", math.nan),
        ("FOCALLEN=               2000.0", math.nan),
    ],
)
def test_diameter_of_the_telescope(card: str, aperture_m: float) -> None:
    assert _row(card)["aperture_m"] == pytest.approx(aperture_m, nan_ok=True)
    assert _row(card, mine=Instrument(aperture_m=0.4))["aperture_m"] == 0.4
