"""Where the stars of one list lie in another: prediction, asterisms, robust fit, acceptance.

A transformation is a matrix [2, 3]: (x, y) of the source times the left square plus the last
column is (x, y) of the target. It is accepted on as many matches as chance would not give in
ten million unrelated pairs of lists, or refused with a reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nightloom.image.asterisms import asterism_candidates
from nightloom.image.matching import Floats, Ints, moved_by, pairs, refine, voted_shift
from nightloom.image.quads import quad_candidates

Matrix: TypeAlias = Floats
Model: TypeAlias = Literal["similarity", "affine"]

_CHANCE = 1e-7  # that unrelated lists are accepted
_STAGES = (16, 28, 50)  # brightest points whose triangles are compared
_ENOUGH_NEIGHBOURS = 10  # for their distances to tell of a density
_PREDICTION_REACH = 6.0  # tolerances that a predicted position may be off by, all together
_LARGEST_RESIDUAL = 0.6  # of the tolerance, rms; matches by chance have 0.7
_FARTHEST = 1e8  # px from the origin; what lies beyond is no position


@dataclass(frozen=True, slots=True)
class Alignment:
    """A transformation from source (reference) to target (frame), and how good it is.

    matrix: float64 [2, 3]; residual_px: rms distance of the matched pairs, in target units;
    rotation_deg: of the frame against the reference, from x to y; scale: target over source.
    """

    matrix: Matrix
    n_matched: int
    residual_px: float
    rotation_deg: float
    scale: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no transformation was accepted; matches and residual (NaN: none) of the best tried."""

    reason: str
    n_matched: int
    residual_px: float


def apply(matrix: Matrix, x_px: NDArray[Any], y_px: NDArray[Any]) -> tuple[Floats, Floats]:
    """Positions (x, y) in the target of positions in the source."""
    x, y = np.asarray(x_px, np.float64), np.asarray(y_px, np.float64)
    return (
        np.asarray(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]),
        np.asarray(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]),
    )


def invert(matrix: Matrix) -> Matrix:
    """The transformation back. Raises ValueError: there is none."""
    square = matrix[:, :2]
    if not (np.isfinite(matrix).all() and abs(np.linalg.det(square)) > 0):
        raise ValueError("this transformation cannot be inverted")
    inverse = np.linalg.inv(square)
    return np.column_stack((inverse, -inverse @ matrix[:, 2]))


def shift_at(matrix: Matrix, x_px: float, y_px: float) -> tuple[float, float]:
    """How far the point (x, y) of the source moves, in (x, y)."""
    x, y = apply(matrix, np.array(x_px), np.array(y_px))
    return float(x) - x_px, float(y) - y_px


def match(
    source_xy: NDArray[Any], target_xy: NDArray[Any], matrix: Matrix, tolerance: float
) -> Ints:
    """Pairs [pair, 2] of indices into source and target, one to one, nearest first served.

    By source. Points [n, 2], NaN matches none; tolerance in target units.
    """
    found = pairs(_points(source_xy), _points(target_xy), _float(matrix), tolerance)[0]
    kept = [
        np.flatnonzero(_usable(np.asarray(xy, dtype=np.float64).reshape(-1, 2)))
        for xy in (source_xy, target_xy)
    ]
    return np.column_stack([kept[0][found[:, 0]], kept[1][found[:, 1]]])


def align(
    reference_xy: NDArray[Any],
    frame_xy: NDArray[Any],
    *,
    prediction: Matrix | None = None,
    min_matched: int = 5,
    tolerance_px: float = 1.5,
    max_scale_error: float = 0.02,
    allow_mirror: bool = False,
    model: Model = "similarity",
) -> Alignment | Refusal:
    """The transformation reference -> frame; points [n, 2], brightest first, NaN left out.

    A prediction (the matrix of the frame before) is tried first, then asterisms. An affine
    model needs 6 matches, below it is a similarity.
    Raises ValueError: lists that are no [n, 2], a limit out of range.
    """
    if not 0 < max_scale_error < 1:
        raise ValueError(f"max_scale_error must lie between 0 and 1, not {max_scale_error}")
    reference, frame = _points(reference_xy), _points(frame_xy)
    scales = (1.0 - max_scale_error, 1.0 + max_scale_error)
    limits = _Limits(scales, allow_mirror, tolerance_px, min_matched, model)
    _check(limits)
    if prediction is not None:
        near = _from_prediction(reference, frame, _float(prediction), limits)
        if isinstance(near, Alignment):
            return near
    return _from_asterisms(reference, frame, limits)


def find_similarity(
    source_xy: NDArray[Any],
    target_xy: NDArray[Any],
    *,
    scale_range: tuple[float, float],
    allow_mirror: bool,
    tolerance: float,
    min_matched: int,
) -> Alignment | Refusal:
    """The similarity source -> target of a scale in a range; points [n, 2], brightest first.

    tolerance and the residual are in target units; the best 50 points of each list are searched,
    all are matched.
    Raises ValueError: lists that are no [n, 2], a limit out of range.
    """
    limits = _Limits(scale_range, allow_mirror, tolerance, min_matched, "similarity")
    _check(limits)
    return _from_asterisms(_points(source_xy), _points(target_xy), limits)


@dataclass(frozen=True, slots=True)
class _Limits:
    scale_range: tuple[float, float]
    allow_mirror: bool
    tolerance: float
    min_matched: int
    model: Model


def _check(limits: _Limits) -> None:
    low, high = limits.scale_range
    if not 0 < low <= high < math.inf:
        raise ValueError(f"scale_range must be two rising numbers above 0, not {low}, {high}")
    if not limits.tolerance > 0:
        raise ValueError(f"the tolerance must be above 0, not {limits.tolerance}")
    if limits.min_matched < 3:
        raise ValueError(f"min_matched must be at least 3, not {limits.min_matched}")


def _float(matrix: NDArray[Any]) -> Matrix:
    return np.ascontiguousarray(matrix, dtype=np.float64)


def _points(xy: NDArray[Any]) -> Floats:
    points = np.asarray(xy, dtype=np.float64)
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be [n, 2], not {points.shape}")
    return np.ascontiguousarray(points[_usable(points)])


def _usable(points: Floats) -> NDArray[np.bool_]:
    return np.asarray((np.abs(points) < _FARTHEST).all(axis=1))  # False for NaN, too


def _too_few(source: Floats, target: Floats, limits: _Limits) -> Refusal | None:
    for name, points in (("reference", source), ("frame", target)):
        if len(points) < limits.min_matched:
            reason = f"{len(points)} stars in the {name}, {limits.min_matched} must match"
            return Refusal(reason, 0, math.nan)
    return None


def _from_prediction(
    source: Floats, target: Floats, prediction: Matrix, limits: _Limits
) -> Alignment | Refusal:
    refusal = _too_few(source, target, limits)
    if refusal is not None:
        return refusal
    if not np.isfinite(prediction).all():
        return Refusal("the prediction is no number", 0, math.nan)
    few_source, few_target = source[: _STAGES[-1]], target[: _STAGES[-1]]
    reach = _PREDICTION_REACH * limits.tolerance
    moved = np.ascontiguousarray(moved_by(prediction, few_source))
    shifted = prediction.copy()
    shifted[:, 2] += voted_shift(moved, few_target, reach, limits.tolerance)
    trials = math.pi * _PREDICTION_REACH**2
    needed = _needed_matches(few_source, few_target, trials, limits)
    return _judged_on_all(source, target, shifted, needed, limits)


def _from_asterisms(source: Floats, target: Floats, limits: _Limits) -> Alignment | Refusal:
    refusal = _too_few(source, target, limits)
    if refusal is not None:
        return refusal
    best = Refusal("no two asterisms agree", 0, math.nan)
    few_source, few_target = source[: _STAGES[-1]], target[: _STAGES[-1]]
    trials = _trials(few_source, few_target, limits)
    needed = _needed_matches(few_source, few_target, trials, limits)
    for stage, size in enumerate(_STAGES):
        if stage and max(len(source), len(target)) <= _STAGES[stage - 1]:
            break
        candidates = asterism_candidates(
            few_source,
            few_target,
            n_brightest=size,
            scale_range=limits.scale_range,
            allow_mirror=limits.allow_mirror,
            tolerance=limits.tolerance,
            least_matches=needed,
        )
        result = _first_accepted(source, target, candidates, needed, limits, best)
        if isinstance(result, Alignment):
            return result
        best = result
    # Triangles solve nearly all; quads are another way of looking before a frame is given up.
    quads = quad_candidates(
        few_source, few_target, scale_range=limits.scale_range, allow_mirror=limits.allow_mirror
    )
    return _first_accepted(source, target, quads, needed, limits, best)


def _first_accepted(
    source: Floats, target: Floats, candidates: Floats, needed: int, limits: _Limits, best: Refusal
) -> Alignment | Refusal:
    for candidate in candidates:
        result = _judged_on_all(source, target, candidate, needed, limits)
        if isinstance(result, Alignment):
            return result
        if result.n_matched > best.n_matched:
            best = result
    return best


def _judged_on_all(
    source: Floats, target: Floats, start: Matrix, needed: int, limits: _Limits
) -> Alignment | Refusal:
    """Accept on the brightest points, then match and fit all of them."""
    few = _judged(source[: _STAGES[-1]], target[: _STAGES[-1]], start, needed, limits)
    if isinstance(few, Refusal) or max(len(source), len(target)) <= _STAGES[-1]:
        return few
    return _judged(source, target, few.matrix, needed, limits)


def _judged(
    source: Floats, target: Floats, start: Matrix, needed: int, limits: _Limits
) -> Alignment | Refusal:
    """Fit from a start until the matches stay, then accept it or say why not."""
    matrix, n_matched, residual = refine(
        source, target, start, tolerance=limits.tolerance, affine=limits.model == "affine"
    )
    if not math.isfinite(residual) or n_matched < needed:
        reason = f"{n_matched} stars match, {needed} are needed to exclude chance"
        return Refusal(reason, n_matched, residual)
    if residual > _LARGEST_RESIDUAL * limits.tolerance:
        reason = f"residual of {residual:.2f} px with a tolerance of {limits.tolerance:g} px"
        return Refusal(reason, n_matched, residual)
    stretch = np.linalg.svd(matrix[:, :2], compute_uv=False)
    low, high = limits.scale_range
    scale = float(np.sqrt(stretch[0] * stretch[1]))
    if not (low <= stretch[1] and stretch[0] <= high):
        reason = f"scale {scale:.4f} is outside {low:.4f} to {high:.4f}"
        return Refusal(reason, n_matched, residual)
    mirrored = np.linalg.det(matrix[:, :2]) < 0
    if mirrored and not limits.allow_mirror:
        return Refusal("the frame would be a mirror image", n_matched, residual)
    sign = -1.0 if mirrored else 1.0
    angle = math.atan2(matrix[1, 0] - sign * matrix[0, 1], matrix[0, 0] + sign * matrix[1, 1])
    return Alignment(matrix, n_matched, residual, math.degrees(angle), scale)


def _trials(source: Floats, target: Floats, limits: _Limits) -> float:
    """How many independent similarities a search tries: pairs on pairs of a fitting length."""
    low, high = limits.scale_range
    extent = float(np.max(np.ptp(target, axis=0)))
    part = min(1.0, math.log(high / low) + 4.0 * limits.tolerance / max(extent, 1e-300))
    pairs = len(source) * (len(source) - 1) * len(target) * (len(target) - 1) / 2.0
    return max(1.0, pairs * part * (2.0 if limits.allow_mirror else 1.0))


def _needed_matches(source: Floats, target: Floats, trials: float, limits: _Limits) -> int:
    """Least number of matches that chance gives with less than 1e-7 in so many trials.

    Two points are used up by a similarity; each further one falls within the tolerance of some
    target with the part of the area that they cover (the denser of their mean density and the
    one of their nearest neighbours). The tail is the binomial one.
    """
    spread = np.ptp(target, axis=0)
    area = max(float(spread[0] * spread[1]), limits.tolerance**2)
    density = len(target) / area
    if len(target) >= _ENOUGH_NEIGHBOURS:
        density = max(density, 0.2206 / _median_neighbour(target) ** 2)
    chance = min(0.5, math.pi * limits.tolerance**2 * density)
    free = max(0, len(source) - 2)
    tail, needed = 0.0, free + 1
    while needed > 0:
        term = math.comb(free, needed - 1) * chance ** (needed - 1)
        term *= (1.0 - chance) ** (free - needed + 1)
        if trials * (tail + term) > _CHANCE:
            break
        tail, needed = tail + term, needed - 1
    return max(limits.min_matched, needed + 2)


def _median_neighbour(points: Floats) -> float:
    """Median distance to the nearest other point, not zero."""
    x, y = points[:, 0], points[:, 1]
    apart2 = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2
    np.fill_diagonal(apart2, np.inf)
    return max(float(np.median(np.sqrt(apart2.min(axis=1)))), 1e-100)
