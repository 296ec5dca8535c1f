"""Which field a science frame belongs to: OBJECT, camera, geometry and pointing."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nightloom.schema.frames import QUARANTINE

# Fewer frames than this at another pointing are strays: they stay, and alignment judges them.
MIN_FIELD_FRAMES = 5
DEFAULT_FIELD_DEG = 0.5


def slug(text: str) -> str:
    """Text as a folder name: letters, digits, `+` and `-`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9+]+", "-", plain).strip("-")


def assign_fields(frames: pd.DataFrame) -> pd.Series:
    """Field of every usable science frame, empty for the others.

    The id is the slug of OBJECT; where the same OBJECT was taken with another camera, shape or
    pointing, a number follows, in order of the first exposure.
    """
    fields = pd.Series("", index=frames.index, dtype="str")
    usable = (frames["image_type"] == "science") & (frames["suspect"] & QUARANTINE == 0)
    science = frames[usable]
    named = {text: slug(text) or "unnamed" for text in science["object"].unique()}
    names = science["object"].map(named)
    for name, of_object in science.groupby(names, sort=True):
        groups = [
            part
            for _, same in of_object.groupby(["instrument", "ny", "nx", "binning"], sort=True)
            for part in _pointings(same)
        ]
        groups.sort(key=lambda part: float(part["jd_utc"].min()))
        for number, part in enumerate(groups):
            fields[part.index] = str(name) if number == 0 else f"{name}-{number + 1}"
    return fields


def _pointings(frames: pd.DataFrame) -> list[pd.DataFrame]:
    """Frames parted where their pointings are further apart than half a frame."""
    ra, dec = frames["ra_deg"].to_numpy(), frames["dec_deg"].to_numpy()
    label = np.full(len(frames), -1)
    reach = _reach_deg(frames)
    known = np.isfinite(ra) & np.isfinite(dec)
    for number in range(len(frames)):
        free = known & (label < 0)
        if not free.any():
            break
        first = int(np.flatnonzero(free)[0])
        centre = first
        for _ in range(2):  # once more around the middle of the first catch
            near = free & (separation_deg(ra, dec, ra[centre], dec[centre]) < reach)
            centre = _middle(ra, dec, near, centre)
        near[first] = True
        label[near] = number
    counts = pd.Series(label[label >= 0]).value_counts()
    if counts.empty:
        return [frames]
    large = [int(k) for k in counts.index if counts[k] >= MIN_FIELD_FRAMES]
    main = int(counts.index[0])
    label = np.where(np.isin(label, large or [main]), label, main)
    return [frames[label == k] for k in sorted(set(label.tolist()))]


def _middle(
    ra: NDArray[np.float64], dec: NDArray[np.float64], near: NDArray[np.bool_], start: int
) -> int:
    """Index of the frame closest to the median pointing of those near."""
    if not near.any():
        return start
    index = np.flatnonzero(near)
    spread = np.hypot(
        (ra[index] - np.median(ra[index])) * np.cos(np.radians(dec[index])),
        dec[index] - np.median(dec[index]),
    )
    return int(index[int(np.argmin(spread))])


def _reach_deg(frames: pd.DataFrame) -> float:
    scale = frames["pixel_scale_arcsec"].median()
    size = float(max(frames["ny"].max(), frames["nx"].max()))
    if not np.isfinite(scale):
        return DEFAULT_FIELD_DEG
    # Half a frame, and a floor for mounts that point to within some arcminutes only.
    return max(0.5 * size * float(scale) / 3600, 0.1)


def separation_deg(
    ra: NDArray[np.float64], dec: NDArray[np.float64], ra0: float, dec0: float
) -> NDArray[np.float64]:
    """Angle on the sky between places and one place, all in degrees (haversine)."""
    d1, d2 = np.radians(dec), np.radians(dec0)
    half = np.sin((d1 - d2) / 2) ** 2 + np.cos(d1) * np.cos(d2) * (
        np.sin(np.radians(ra - ra0) / 2) ** 2
    )
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))))
