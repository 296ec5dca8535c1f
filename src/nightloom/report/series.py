"""Numbers behind the figures: time axes without daytime, means of bins, scatter, limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MINUTE_D = 1.0 / 1440.0
_NO_SPAN = np.array([[0.0, 1.0]])


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Where points lie along x, in days; of several nights the daytime is cut out.

    x [time]; night [time]: index into names; spans [night, 2]: from where to where on x.
    """

    x: Floats
    night: NDArray[np.int64]
    names: tuple[str, ...]
    spans: Floats
    label: str


def time_axis(time_d: Floats, night: NDArray[Any], *, scale: str) -> TimeAxis:
    """The axis of points in time order; night [time]: name of each one's night."""
    names, index = np.unique(night.astype(str), return_inverse=True)
    if len(names) <= 1:
        day = int(np.floor(np.nanmin(time_d))) if np.isfinite(time_d).any() else 0
        x = time_d - day
        spans = np.array([[np.nanmin(x), np.nanmax(x)]]) if np.isfinite(x).any() else _NO_SPAN
        return TimeAxis(x, index, tuple(names), spans, f"{scale} − {day} (days)")
    starts = np.array([np.nanmin(time_d[index == k]) for k in range(len(names))])
    lengths = np.array([np.nanmax(time_d[index == k]) for k in range(len(names))]) - starts
    gap = 0.25 * float(lengths.sum()) / len(names)
    left = np.concatenate([[0.0], np.cumsum(lengths + gap)[:-1]])
    x = time_d - starts[index] + left[index]
    spans = np.column_stack([left, left + lengths])
    return TimeAxis(x, index, tuple(names), spans, "night (days between nights are cut out)")


def bin_days(axis: TimeAxis) -> float:
    """Width of a bin: a thirtieth of a night within 5 to 10 minutes, and at least three frames."""
    span = float(np.median(axis.spans[:, 1] - axis.spans[:, 0]))
    steps = np.diff(axis.x)[axis.night[1:] == axis.night[:-1]]
    cadence = float(np.median(steps)) if steps.size else 0.0
    return max(float(np.clip(span / 30, 5 * MINUTE_D, 10 * MINUTE_D)), 3 * cadence)


def binned(
    axis: TimeAxis, flux: Floats, flux_err: Floats, use: Bools, *, bin_d: float
) -> tuple[Floats, Floats, Floats]:
    """Weighted means of bins that cross no night: their x, flux and error.

    use [time]: the points that count. Points without an error weigh the same as each other.
    """
    use = use & np.isfinite(flux) & np.isfinite(axis.x)
    since = axis.x[use] - axis.spans[axis.night[use], 0]
    keys = np.column_stack([axis.night[use], np.floor(since / bin_d)])
    groups, index = np.unique(keys, axis=0, return_inverse=True)
    index = index.reshape(-1)
    error = flux_err[use]
    known = bool(np.all(error > 0))
    weight = 1.0 / error**2 if known else np.ones(len(error))
    total = np.bincount(index, weight, minlength=len(groups))
    mean = np.bincount(index, weight * flux[use], minlength=len(groups)) / total
    x = np.bincount(index, weight * axis.x[use], minlength=len(groups)) / total
    return x, mean, 1.0 / np.sqrt(total) if known else np.full(len(groups), np.nan)


def limits(values: Floats, clean: Bools) -> tuple[float, float]:
    """Range of y that shows the clean points; the wildest half per cent does not set it."""
    shown = values[clean & np.isfinite(values)]
    if not shown.size:
        shown = values[np.isfinite(values)]
    if not shown.size:
        return 0.9, 1.1
    shown = np.sort(shown)
    wild = -(-len(shown) // 200) if len(shown) > 10 else 0
    low, high = shown[wild], shown[-1 - wild]
    room = 0.2 * (high - low) or 0.01 * max(abs(high), 1e-3)
    return float(low - room), float(high + room)


def point_to_point(flux: Floats, night: NDArray[Any]) -> float:
    """Scatter from one point to the next within nights, std(diff) / sqrt 2; NaN below 3 points.

    flux, night [time]: of the points that count.
    """
    steps = np.diff(flux)[night[1:] == night[:-1]]
    return float(np.std(steps) / np.sqrt(2.0)) if steps.size > 1 else float("nan")
