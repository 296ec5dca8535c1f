"""Candidate similarities from quads of stars, hashed by twirl (Lang et al. 2010)."""

from __future__ import annotations

import numpy as np
from twirl.quads import hashes

from nightloom.image.matching import Floats, Ints, fit_similarity

_BRIGHTEST = 12  # 495 quads; twirl's own choice
_CLOSEST = 24  # pairs of quads whose hashes agree best
_AGREE = 0.05  # distance of two hashes, in units of the quad's size
_CORNERS: Ints = np.arange(4)


def quad_candidates(
    source_xy: Floats,
    target_xy: Floats,
    *,
    scale_range: tuple[float, float],
    allow_mirror: bool,
) -> Floats:
    """Similarities source -> target of the pairs of quads that agree best: [candidate, 2, 3].

    Points [n, 2], brightest first. Unlike triangles a quad seldom agrees by chance, so that few
    candidates are enough where the brightest stars are the same in both lists.
    """
    found: list[Floats] = []
    if min(len(source_xy), len(target_xy)) < 4:
        return np.empty((0, 2, 3))
    their_hash, theirs = _hashed(target_xy[:_BRIGHTEST])
    for mirror in (1.0, -1.0) if allow_mirror else (1.0,):
        our_hash, ours = _hashed(source_xy[:_BRIGHTEST] * (1.0, mirror))
        apart = np.linalg.norm(our_hash[:, None, :] - their_hash[None, :, :], axis=2)
        order = np.argsort(apart, axis=None, kind="stable")[:_CLOSEST]
        for i, j in zip(*np.unravel_index(order, apart.shape), strict=True):
            if not apart[i, j] < _AGREE:
                break
            matrix = np.empty((2, 3))
            quad = np.ascontiguousarray(ours[i] * (1.0, mirror))
            fit_similarity(
                quad, np.ascontiguousarray(theirs[j]), _CORNERS, _CORNERS, mirror, matrix
            )
            scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
            if scale_range[0] <= scale <= scale_range[1]:
                found.append(matrix)
    return np.array(found).reshape(-1, 2, 3)


def _hashed(xy: Floats) -> tuple[Floats, Floats]:
    # Points that coincide span no quad: their hash is NaN, and agrees with none.
    with np.errstate(divide="ignore", invalid="ignore"):
        hash_of, quads = hashes(xy)
    return hash_of, quads
