"""Masters: which frames make one, and which one a frame uses, with the reason in words.

The policy is a table: what a master and a frame must share, how far apart their nights may be,
and what decides between several (nearest night, then more frames, then name).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd

from nightloom.config import CalibrationSection
from nightloom.plan.fields import slug
from nightloom.schema.frames import QUARANTINE
from nightloom.store.fingerprint import digest_of_bytes

SAME_EXPOSURE = 0.01  # relative
SECTIONS = ("overscan_section", "data_section")
SHARED = ("instrument", "ny", "nx", "binning", "read_mode", *SECTIONS)
GROUPED_BY = {
    "bias": (*SHARED, "night"),
    "dark": (*SHARED, "night", "exposure_s"),
    "flat": (*SHARED, "night", "filter"),
}


@dataclass(frozen=True, slots=True)
class Kit:
    """A master to be: what all its frames share, and which rows of the frame table they are."""

    product: str
    image_type: str
    instrument: str
    ny: int
    nx: int
    binning: int
    read_mode: str
    night: str
    exposure_s: float
    filter: str
    ccd_temp_c: float
    rows: tuple[int, ...]
    overscan_section: str = ""
    data_section: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The masters that some frames use, empty where there is none, and why."""

    bias: str = ""
    dark: str = ""
    flat: str = ""
    reasons: tuple[str, ...] = ()
    calibrated: bool = False  # before it came here: nothing is to be done again
    lights: str = ""  # map of hot pixels from the frames themselves

    @property
    def missing(self) -> tuple[str, ...]:
        if self.calibrated:
            return ()
        lacking = []
        if not self.dark:
            lacking.append("dark" if self.bias else "bias, dark")
        if not self.flat:
            lacking.append("flat")
        return tuple(lacking)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the frames to be calibrated are like."""

    instrument: str
    ny: int
    nx: int
    binning: int
    read_mode: str
    night: str
    exposure_s: float
    filter: str
    ccd_temp_c: float
    overscan_section: str = ""
    data_section: str = ""


def kits(frames: pd.DataFrame) -> tuple[Kit, ...]:
    """Every master that the archive's calibration frames can make, in order of product."""
    found: list[Kit] = []
    usable = frames[(frames["suspect"] & QUARANTINE == 0) & (frames["night"] != "")]
    for image_type, keys in GROUPED_BY.items():
        of_type = usable[usable["image_type"] == image_type]
        for _, group in of_type.groupby(list(keys), sort=True, dropna=False):
            found.append(_kit(image_type, group))
    return tuple(sorted(found, key=lambda kit: kit.product))


def _kit(image_type: str, group: pd.DataFrame) -> Kit:
    first = group.iloc[0]
    name = f"{first['instrument']}-{first['nx']}x{first['ny']}-bin{first['binning']}"
    parts = [name, _sections_slug(first), slug(first["read_mode"]), first["night"]]
    exposure_s = float(group["exposure_s"].median())
    if image_type == "dark":
        parts.append(f"{exposure_s:g}s")
    if image_type == "flat":
        parts.append(slug(first["filter"]) or "nofilter")
    return Kit(
        product=f"master/{image_type}/" + "_".join(part for part in parts if part),
        image_type=image_type,
        instrument=first["instrument"],
        ny=int(first["ny"]),
        nx=int(first["nx"]),
        binning=int(first["binning"]),
        read_mode=first["read_mode"],
        night=first["night"],
        exposure_s=exposure_s,
        filter=first["filter"] if image_type == "flat" else "",
        ccd_temp_c=float(group["ccd_temp_c"].median()),
        rows=tuple(int(i) for i in group.sort_values(["jd_utc", "path"]).index),
        overscan_section=first["overscan_section"],
        data_section=first["data_section"],
    )


def _sections_slug(row: pd.Series) -> str:
    """What parts the masters of frames that are trimmed in different ways; mostly empty."""
    texts = [row[name] for name in SECTIONS]
    return f"trim{digest_of_bytes(' '.join(texts).encode())[:6]}" if any(texts) else ""


def wanted_of(row: pd.Series) -> Wanted:
    """What a row of the frame table asks of its masters."""
    return Wanted(
        instrument=row["instrument"],
        ny=int(row["ny"]),
        nx=int(row["nx"]),
        binning=int(row["binning"]),
        read_mode=row["read_mode"],
        night=row["night"],
        exposure_s=float(row["exposure_s"]),
        filter=row["filter"],
        ccd_temp_c=float(row["ccd_temp_c"]),
        overscan_section=row["overscan_section"],
        data_section=row["data_section"],
    )


def choose(wanted: Wanted, available: tuple[Kit, ...], settings: CalibrationSection) -> Choice:
    """Bias, dark and flat for frames of one night, exposure and filter."""
    bias, why_bias = _nearest(wanted, available, "bias", settings.max_days_bias, settings)
    darks = [kit for kit in available if kit.image_type == "dark"]
    equal = tuple(kit for kit in darks if _same_exposure(kit.exposure_s, wanted.exposure_s))
    dark, why_dark = _nearest(wanted, equal, "dark", settings.max_days_dark, settings)
    if dark is None and darks:
        other, why_other = _nearest(wanted, tuple(darks), "dark", settings.max_days_dark, settings)
        if other is None:
            why_dark = why_other
        elif bias is None:
            why_dark = (
                f"no dark: none of {wanted.exposure_s:g} s, and without a bias none can be scaled"
            )
        else:
            dark = other
            why_dark = f"{why_other}, scaled from {other.exposure_s:g} to {wanted.exposure_s:g} s"
    flats = tuple(
        kit for kit in available if kit.image_type == "flat" and kit.filter == wanted.filter
    )
    flat, why_flat = _nearest(wanted, flats, "flat", settings.max_days_flat, settings)
    return Choice(
        bias="" if bias is None else bias.product,
        dark="" if dark is None else dark.product,
        flat="" if flat is None else flat.product,
        reasons=(why_bias, why_dark, why_flat),
    )


def _nearest(
    wanted: Wanted,
    available: tuple[Kit, ...],
    image_type: str,
    max_days: int,
    settings: CalibrationSection,
) -> tuple[Kit | None, str]:
    """The valid master of the nearest night, and why it or why none."""
    of_type = [kit for kit in available if kit.image_type == image_type]
    fitting = [kit for kit in of_type if _same_camera(kit, wanted)]
    warm = [kit for kit in fitting if not _temp_fits(kit, wanted, settings)]
    near = [
        kit for kit in fitting if kit not in warm and _days(kit.night, wanted.night) <= max_days
    ]
    if near:
        best = min(near, key=lambda k: (_days(k.night, wanted.night), -len(k.rows), k.product))
        days = _days(best.night, wanted.night)
        when = "of the night" if days == 0 else f"of {best.night}, {days} d away"
        return best, f"{image_type} {when} ({len(best.rows)} frames)"
    if not of_type:
        return None, f"no {image_type} that fits in the archive"
    if not fitting:
        unlike = "of another camera, shape, read mode or overscan"
        return None, f"no {image_type}: {len(of_type)} {unlike}"
    if len(warm) == len(fitting):
        limit = settings.max_temp_difference_c
        return None, f"no {image_type}: detector temperature differs by over {limit:g} C"
    return None, f"no {image_type} within {max_days} d"


def _same_camera(kit: Kit, wanted: Wanted) -> bool:
    return all(getattr(kit, key) == getattr(wanted, key) for key in SHARED)


def _temp_fits(kit: Kit, wanted: Wanted, settings: CalibrationSection) -> bool:
    # A flat does not depend on the temperature as a dark does.
    if kit.image_type == "flat":
        return True
    difference = abs(kit.ccd_temp_c - wanted.ccd_temp_c)
    return not np.isfinite(difference) or difference <= settings.max_temp_difference_c


def _same_exposure(one_s: float, other_s: float) -> bool:
    return abs(one_s - other_s) <= SAME_EXPOSURE * max(one_s, other_s)


def _days(night: str, other: str) -> int:
    return abs((date.fromisoformat(night) - date.fromisoformat(other)).days)
