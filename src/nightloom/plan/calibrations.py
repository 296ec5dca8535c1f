"""Masters: which frames make one, and which one a frame uses, with the reason in words.

The policy is a table: what a master and a frame must share, how far apart their nights may be,
and what decides between several (nearest night, then more frames, then name).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightloom.config import CalibrationSection
from nightloom.plan.fields import slug
from nightloom.plan.shelves import (
    SECTIONS,
    SHARED,
    Kit,
    Shelf,
    Shelves,
    Wanted,
    day_of,
    shelves_of,
)
from nightloom.schema.frames import QUARANTINE
from nightloom.store.fingerprint import digest_of_bytes

GROUPED_BY = {
    "bias": (*SHARED, "night"),
    "dark": (*SHARED, "night", "exposure_s"),
    "flat": (*SHARED, "night", "filter"),
}
_OF_KITS = (*SHARED, "night", "filter", "exposure_s", "ccd_temp_c")


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


def kits(frames: pd.DataFrame) -> tuple[Kit, ...]:
    """Every master that the archive's calibration frames can make, in order of product.

    frames: rows are named by their position.
    """
    found: list[Kit] = []
    usable = (frames["suspect"] & QUARANTINE == 0) & (frames["night"] != "")
    for image_type, keys in GROUPED_BY.items():
        wanted = (frames["image_type"] == image_type) & usable
        of_type = frames.loc[wanted, [*_OF_KITS, "jd_utc", "path"]]
        order, starts = in_groups(of_type, keys)
        rows = of_type.index.to_numpy()[order].tolist()
        columns = {
            name: of_type[name].to_numpy(dtype=object if of_type[name].dtype == "str" else None)
            for name in _OF_KITS
        }
        for start, stop in itertools.pairwise([*starts.tolist(), len(rows)]):
            group = {name: values[order[start:stop]] for name, values in columns.items()}
            found.append(_kit(image_type, group, tuple(rows[start:stop])))
    return tuple(sorted(found, key=lambda kit: kit.product))


def in_groups(
    frames: pd.DataFrame, keys: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in order of some columns, in each group in order of time, then path; where groups start.

    Returns positions, as many as rows, and of these the first of each group.
    """
    codes = [pd.factorize(frames[name], sort=True, use_na_sentinel=False)[0] for name in keys]
    jd = frames["jd_utc"].to_numpy()
    order = np.lexsort((jd, *reversed(codes)))
    starts = np.zeros(len(frames), dtype=np.bool_)
    for code in codes:
        starts |= np.diff(code[order], prepend=-1) != 0
    if np.any(~starts[1:] & (np.diff(jd[order]) == 0)):  # ties are rare, and text is slow
        order = np.lexsort((pd.factorize(frames["path"], sort=True)[0], jd, *reversed(codes)))
    return order, np.flatnonzero(starts)


def _kit(image_type: str, group: dict[str, NDArray[Any]], rows: tuple[int, ...]) -> Kit:
    first = {name: values[0] for name, values in group.items()}
    name = f"{first['instrument']}-{first['nx']}x{first['ny']}-bin{first['binning']}"
    parts = [name, _sections_slug(first), slug(first["read_mode"]), first["night"]]
    exposure_s = _median(group["exposure_s"])
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
        ccd_temp_c=_median(group["ccd_temp_c"]),
        rows=rows,
        overscan_section=first["overscan_section"],
        data_section=first["data_section"],
    )


def _median(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _sections_slug(row: Mapping[str, Any]) -> str:
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


def choose(
    wanted: Wanted, available: Sequence[Kit] | Shelves, settings: CalibrationSection
) -> Choice:
    """Bias, dark and flat for frames of one night, exposure and filter."""
    shelves = available if isinstance(available, dict) else shelves_of(available)
    biases, darks, flats = (shelves[name] for name in ("bias", "dark", "flat"))
    bias, why_bias = _nearest(wanted, biases, settings.max_days_bias, settings)
    equal = darks.same_exposure(wanted.exposure_s)
    dark, why_dark = _nearest(wanted, equal, settings.max_days_dark, settings)
    if dark is None and darks.kits:
        other, why_other = _nearest(wanted, darks, settings.max_days_dark, settings)
        if other is None:
            why_dark = why_other
        elif bias is None:
            why_dark = (
                f"no dark: none of {wanted.exposure_s:g} s, and without a bias none can be scaled"
            )
        else:
            dark = other
            why_dark = f"{why_other}, scaled from {other.exposure_s:g} to {wanted.exposure_s:g} s"
    same_filter = flats.same_filter(wanted.filter)
    flat, why_flat = _nearest(wanted, same_filter, settings.max_days_flat, settings)
    return Choice(
        bias="" if bias is None else bias.product,
        dark="" if dark is None else dark.product,
        flat="" if flat is None else flat.product,
        reasons=(why_bias, why_dark, why_flat),
    )


def _nearest(
    wanted: Wanted, shelf: Shelf, max_days: int, settings: CalibrationSection
) -> tuple[Kit | None, str]:
    """The valid master of the nearest night, and why it or why none."""
    name = shelf.image_type
    if not len(shelf.places):
        return None, f"no {name} that fits in the archive"
    day = day_of(wanted.night)
    within = shelf.between(day - max_days, day + max_days)
    near = within[shelf.fits(within, wanted, settings)]
    if len(near):
        apart = np.abs(shelf.day[near] - day)
        days = int(apart.min())
        nearest = [shelf.kits[k] for k in near[apart == days].tolist()]
        kit = min(nearest, key=lambda kit: (-len(kit.rows), kit.product))
        when = "of the night" if days == 0 else f"of {kit.night}, {days} d away"
        return kit, f"{name} {when} ({len(kit.rows)} frames)"
    if not shelf.has_camera(wanted):
        unlike = "of another camera, shape, read mode or overscan"
        return None, f"no {name}: {len(shelf.places)} {unlike}"
    if not shelf.fits(shelf.places, wanted, settings).any():
        limit = settings.max_temp_difference_c
        return None, f"no {name}: detector temperature differs by over {limit:g} C"
    return None, f"no {name} within {max_days} d"
