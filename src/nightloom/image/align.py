"""Where the stars of a list lie in another list (being written: signatures are final)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Alignment:
    """A transformation [2, 3] from source (reference) to target (frame), and how good it is."""

    matrix: Matrix
    n_matched: int
    residual_px: float
    rotation_deg: float
    scale: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no transformation was accepted; numbers of the best one tried."""

    reason: str
    n_matched: int
    residual_px: float


def apply(
    matrix: Matrix, x_px: NDArray[Any], y_px: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...


def invert(matrix: Matrix) -> Matrix: ...


def match(
    source_xy: NDArray[Any], target_xy: NDArray[Any], matrix: Matrix, tolerance: float
) -> NDArray[np.int64]: ...  # [pair, 2]: index into source, index into target


def align(
    reference_xy: NDArray[Any],
    frame_xy: NDArray[Any],
    *,
    prediction: Matrix | None = None,
    min_matched: int = 5,
    tolerance_px: float = 1.5,
    max_scale_error: float = 0.02,
    allow_mirror: bool = False,
    model: Literal["similarity", "affine"] = "similarity",
) -> Alignment | Refusal: ...


def find_similarity(
    source_xy: NDArray[Any],
    target_xy: NDArray[Any],
    *,
    scale_range: tuple[float, float],
    allow_mirror: bool,
    tolerance: float,
    min_matched: int,
) -> Alignment | Refusal: ...
