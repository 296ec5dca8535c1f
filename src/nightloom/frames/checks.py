"""What is suspect about a frame: its file against its header, its header, a row against the sun."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightloom.frames.cards import Cards, raw_of, text_of
from nightloom.frames.clock import Findings
from nightloom.frames.fits import BLOCK_BYTES, Hdu
from nightloom.schema.frames import SUSPECT_BITS
from nightloom.sky.times import night_of, sun_altitude_deg

_FIRST_CCD_JD = 2442413.5  # 1975-01-01
_UTC_NAMES = ("", "UTC", "UT")
_PLATE_KEYS = ("PLATEID", "PLTLABEL", "EMULSION")
_CALIBRATION_KEYS = ("ZEROCOR", "BIASCOR", "DARKCOR", "FLATCOR", "FF-FLAG", "ILLUMCOR", "CALSTAT")
_STACK_KEYS = ("NCOMBINE", "STACKCNT")
CALIBRATED = "already calibrated"  # how such a reason begins


def check_file(hdus: tuple[Hdu, ...], image: Hdu) -> Findings:
    """Is the image whole, as far as the file's size tells, and the only one?"""
    findings: Findings = []
    images = [hdu for hdu in hdus if hdu.is_2d]
    if len(images) > 1:
        words = f"the first of {len(images)} images is used, HDU {image.index}"
        findings.append(("multi_hdu", words))
    size_bytes = image.file_bytes
    if size_bytes is None:
        return findings
    end = image.data_offset + image.data_bytes
    if size_bytes < end:
        findings.append(("truncated", f"truncated: {size_bytes} bytes of {end}"))
    elif size_bytes < -(-end // BLOCK_BYTES) * BLOCK_BYTES:
        findings.append(("", "the last block is not filled up, the pixels are whole"))
    return findings


def check_header(cards: Cards) -> Findings:
    """Is it a raw frame of a CCD at all, in colours, in UTC?"""
    findings: Findings = []
    plates = [key for key in _PLATE_KEYS if key in cards]
    if plates or "photographic" in raw_of(cards, "INSTRUME").lower():
        findings.append(("not_ccd", f"a photographic plate ({(*plates, 'INSTRUME')[0]})"))
    for key in _STACK_KEYS:
        count = raw_of(cards, key)
        if count.isdigit() and int(count) > 1:
            findings.append(("not_ccd", f"{key} = {count}: combined of several frames"))
    if text_of(cards, "BAYERPAT") or text_of(cards, "COLORTYP") in ("RGGB", "GRBG", "GBRG", "BGGR"):
        findings.append(("colour", f"a Bayer mosaic {raw_of(cards, 'BAYERPAT')}"))
    scale = text_of(cards, "TIMESYS").upper()
    if scale not in _UTC_NAMES:
        findings.append(("time_suspect", f"TIMESYS is {scale}, taken as UTC"))
    done = [key for key in _CALIBRATION_KEYS if text_of(cards, key)]
    if done:
        findings.append(("", f"{CALIBRATED} by {', '.join(done)}"))
    return findings


def check_frames(frames: pd.DataFrame) -> pd.DataFrame:
    """The table with `night` filled in and what time, site and sun make suspect.

    Rows of files without header or image are left as they are.
    """
    frames = frames.copy()
    nothing = SUSPECT_BITS["unreadable"] | SUSPECT_BITS["no_image"]
    readable = (frames["suspect"].to_numpy() & nothing) == 0
    jd = frames["jd_utc"].to_numpy(dtype=np.float64)
    lat = frames["site_lat_deg"].to_numpy(dtype=np.float64)
    lon = frames["site_lon_deg"].to_numpy(dtype=np.float64)
    frames["night"] = pd.Series(night_of(jd, lon), index=frames.index, dtype="str")
    timed = readable & np.isfinite(jd)
    no_site = readable & ~(np.isfinite(lat) & np.isfinite(lon))
    _mark(frames, no_site, "no_site", "no site")
    _mark(frames, timed & (jd < _FIRST_CCD_JD), "time_suspect", "earlier than any CCD")
    science = (frames["image_type"] == "science").to_numpy(dtype=bool)
    sunny = np.zeros(len(frames), dtype=bool)
    seen = np.flatnonzero(timed & science & ~no_site)
    sunny[seen] = sun_altitude_deg(jd[seen], lat[seen], lon[seen]) > 0.0
    _mark(frames, sunny, "daylight", "the sun is up")
    return frames


def _mark(frames: pd.DataFrame, rows: NDArray[np.bool_], name: str, words: str) -> None:
    """Set a bit and add its words in the chosen rows, in place."""
    if not rows.any():
        return
    bit = np.uint32(SUSPECT_BITS[name])
    frames["suspect"] = np.where(rows, frames["suspect"].to_numpy() | bit, frames["suspect"])
    reasons = frames["reason"].to_numpy(dtype=object, copy=True)
    reasons[rows] = [f"{reason}; {words}" if reason else words for reason in reasons[rows]]
    frames["reason"] = pd.Series(reasons, index=frames.index, dtype="str")
