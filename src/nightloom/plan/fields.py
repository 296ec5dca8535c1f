"""Which field a science frame belongs to: OBJECT, camera, geometry and pointing."""

from __future__ import annotations

import itertools
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
    usable = (frames["image_type"] == "science") & (frames["suspect"] & QUARANTINE == 0)
    rows = np.flatnonzero(usable)
    objects, texts = pd.factorize(frames["object"].iloc[rows])
    names, name_of = np.unique([slug(text) or "unnamed" for text in texts], return_inverse=True)
    like = frames[["instrument", "ny", "nx", "binning"]].iloc[rows]
    like["name"] = name_of[objects] if len(rows) else 0
    group = like.groupby(["name", "instrument", "ny", "nx", "binning"], sort=True).ngroup()
    order = np.argsort(group.to_numpy(), kind="stable")
    starts = np.flatnonzero(np.diff(group.to_numpy()[order], prepend=-1))
    where = frames[["ra_deg", "dec_deg", "ny", "nx", "pixel_scale_arcsec"]]
    parts: dict[int, list[NDArray[np.int64]]] = {}
    for start, stop in itertools.pairwise([*starts.tolist(), len(rows)]):
        mine = rows[order[start:stop]]
        name = int(like["name"].iloc[order[start]])
        parts.setdefault(name, []).extend(mine[part] for part in _pointings(where.iloc[mine]))
    jd = frames["jd_utc"].to_numpy()
    ids, field_of = [""], np.zeros(len(frames), dtype=np.int32)
    for name, groups in parts.items():
        groups.sort(key=lambda part: float(np.min(jd[part])))
        for number, part in enumerate(groups):
            field_of[part] = len(ids)
            ids.append(str(names[name]) if number == 0 else f"{names[name]}-{number + 1}")
    return pd.Series(np.array(ids, dtype=object)[field_of], index=frames.index, dtype="str")


def _pointings(frames: pd.DataFrame) -> list[NDArray[np.int64]]:
    """Positions of frames parted where their pointings are further apart than half a frame."""
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
        return [np.arange(len(frames))]
    large = [int(k) for k in counts.index if counts[k] >= MIN_FIELD_FRAMES]
    main = int(counts.index[0])
    label = np.where(np.isin(label, large or [main]), label, main)
    return [np.flatnonzero(label == k) for k in sorted(set(label.tolist()))]


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
