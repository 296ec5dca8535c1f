"""The frame table: its columns with dtype, unit and meaning, and what makes a frame suspect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

FRAMES_SCHEMA_VERSION = 3
ImageType = Literal["bias", "dark", "flat", "science"]
IMAGE_TYPES: tuple[ImageType, ...] = ("bias", "dark", "flat", "science")


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    dtype: str
    unit: str
    meaning: str


COLUMNS: tuple[Column, ...] = (
    Column("root", "str", "", "folder of the configuration that the file was found under"),
    Column("path", "str", "", "path of the file, relative to root"),
    Column("hdu", "int16", "", "index of the HDU with the image, 0 the primary"),
    Column("size_bytes", "int64", "byte", "size of the file"),
    Column("mtime_ns", "int64", "ns", "modification time of the file"),
    Column("digest", "str", "", "digest of the header's bytes, or of the file where it must be"),
    Column("instrument", "str", "", "slug of telescope and camera, or the profile's name"),
    Column("image_type", "str", "", "bias, dark, flat, science; empty where unknown"),
    Column("object", "str", "", "OBJECT as the header has it"),
    Column("filter", "str", "", "filter; empty where the header has none"),
    Column("exposure_s", "float64", "s", "exposure time"),
    Column("jd_utc", "float64", "d", "Julian date, UTC, of mid-exposure"),
    Column("ra_deg", "float64", "deg", "where the telescope believed it pointed, ICRS"),
    Column("dec_deg", "float64", "deg", "where the telescope believed it pointed, ICRS"),
    Column("ny", "int32", "pixel", "rows"),
    Column("nx", "int32", "pixel", "columns"),
    Column("binning", "int16", "", "binning along x; 1 where the header has none"),
    Column("overscan_section", "str", "", "[x1:x2,y1:y2] from 1, of the file; empty: none"),
    Column("data_section", "str", "", "[x1:x2,y1:y2] of what holds data; empty: all of it"),
    Column("gain_e_per_adu", "float64", "electron/adu", "gain, NaN where unknown"),
    Column("read_noise_e", "float64", "electron", "read noise, NaN where unknown"),
    Column("read_mode", "str", "", "readout mode and camera gain setting, as far as given"),
    Column("ccd_temp_c", "float64", "deg_C", "temperature of the detector"),
    Column("pixel_scale_arcsec", "float64", "arcsec/pixel", "as header or optics say"),
    Column("aperture_m", "float64", "m", "diameter of the telescope, NaN where unknown"),
    Column("saturation_adu", "float64", "adu", "level at which a pixel saturates, NaN unknown"),
    Column("site_lat_deg", "float64", "deg", "latitude of the site, north positive"),
    Column("site_lon_deg", "float64", "deg", "longitude of the site, east positive"),
    Column("site_height_m", "float64", "m", "height of the site"),
    Column("night", "str", "", "date of the evening, noon to noon local mean solar time"),
    Column("field", "str", "", "field the frame belongs to; filled by the plan"),
    Column("suspect", "uint32", "", "bits of SUSPECTS"),
    Column("reason", "str", "", "in words: why suspect or unreadable, what was guessed"),
)
COLUMN_NAMES: tuple[str, ...] = tuple(column.name for column in COLUMNS)


@dataclass(frozen=True, slots=True)
class Suspect:
    bit: int
    name: str
    meaning: str
    quarantine: bool

    @property
    def mask(self) -> int:
        return 1 << self.bit


SUSPECTS: tuple[Suspect, ...] = (
    Suspect(0, "unreadable", "the file is no FITS or its header can't be read", quarantine=True),
    Suspect(1, "no_image", "no HDU of the file holds an image", quarantine=True),
    Suspect(2, "not_2d", "the image has not two dimensions", quarantine=True),
    Suspect(3, "truncated", "the file ends before its pixels do", quarantine=True),
    Suspect(4, "no_time", "no usable time of exposure", quarantine=True),
    Suspect(5, "no_exposure", "no usable exposure time", quarantine=True),
    Suspect(6, "not_ccd", "a plate, a spectrum or a processed image, not a CCD frame", True),
    Suspect(7, "type_unknown", "neither header, profile, folder nor name tell the type", True),
    Suspect(8, "time_suspect", "the time is guessed or contradicts itself", quarantine=False),
    Suspect(9, "type_guessed", "the type is guessed from folder or file name", quarantine=False),
    Suspect(10, "no_site", "no site: the night is cut at noon UTC, no airmass", quarantine=False),
    Suspect(11, "colour", "a Bayer mosaic: photometry mixes its colours", quarantine=False),
    Suspect(12, "daylight", "a science frame taken with the sun up", quarantine=False),
    Suspect(13, "multi_hdu", "the file has more images than the one used", quarantine=False),
    Suspect(14, "section_unused", "its overscan or data section makes no sense", quarantine=False),
)
SUSPECT_BITS: dict[str, int] = {suspect.name: suspect.mask for suspect in SUSPECTS}
QUARANTINE: int = sum(suspect.mask for suspect in SUSPECTS if suspect.quarantine)

FrameState = Literal["pending", "measured", "used", "unused", "quarantined", "unreadable"]


def empty_frames() -> pd.DataFrame:
    """A frame table without rows, every column with its dtype."""
    return pd.DataFrame(
        {
            column.name: pd.Series(dtype=pd.api.types.pandas_dtype(column.dtype))
            for column in COLUMNS
        }
    )


def frames_from_rows(rows: list[dict[str, object]]) -> pd.DataFrame:
    """A frame table from dicts; keys left out take the empty value of their column.

    Raises KeyError: a row has a key that is no column.
    """
    known = set(COLUMN_NAMES)
    for row in rows:
        if not known.issuperset(row):
            raise KeyError(f"not columns of the frame table: {sorted(set(row) - known)}")
    data = {
        column.name: pd.Series(
            [row.get(column.name, _empty_value(column)) for row in rows],
            dtype=pd.api.types.pandas_dtype(column.dtype),
        )
        for column in COLUMNS
    }
    return pd.DataFrame(data)


def completed(frames: pd.DataFrame) -> pd.DataFrame:
    """A table that an earlier version wrote, with the columns that came since, empty."""
    lacking = [column for column in COLUMNS if column.name not in frames]
    if not lacking:
        return frames
    new = {
        c.name: pd.Series(_empty_value(c), frames.index, pd.api.types.pandas_dtype(c.dtype))
        for c in lacking
    }
    whole = frames.assign(**new)[list(COLUMN_NAMES)]
    whole.attrs.update(frames.attrs)
    return whole


def _empty_value(column: Column) -> object:
    if column.dtype == "str":
        return ""
    if column.dtype.startswith("float"):
        return np.nan
    return 1 if column.name == "binning" else 0
