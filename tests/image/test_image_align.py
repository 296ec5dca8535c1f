"""Alignment of star lists: found where there is one, refused where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from nightloom.image.align import (
    Alignment,
    Refusal,
    align,
    apply,
    find_similarity,
    invert,
    match,
    shift_at,
)

SIZE_PX = 1000.0
CORNERS = np.array([[0.0, SIZE_PX, 0.0, SIZE_PX], [0.0, 0.0, SIZE_PX, SIZE_PX]])


def similarity(*, rotation_deg, shift_px, scale=1.0, mirror=False):
    """A matrix that turns about the middle of the frame and then shifts."""
    angle = math.radians(rotation_deg)
    square = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    if mirror:
        square = square @ np.diag([1.0, -1.0])
    middle = np.full(2, SIZE_PX / 2)
    return np.column_stack((square, middle - square @ middle + np.asarray(shift_px)))


def seen(rng, xy, magnitude, *, spurious=1 / 3, noise_px=0.2, keep=50):
    """What a frame of 1000 x 1000 shows of a sky: noisy places and ranks, spurious stars."""
    inside = ((xy >= 0) & (xy < SIZE_PX)).all(axis=1)
    places = xy[inside] + rng.normal(0, noise_px, (inside.sum(), 2))
    ranks = magnitude[inside] + rng.normal(0, 0.1, inside.sum())
    more = round(len(places) * spurious / (1 - spurious))
    places = np.vstack((places, rng.uniform(0, SIZE_PX, (more, 2))))
    ranks = np.append(ranks, rng.exponential(1.0, more))
    return places[np.argsort(-ranks)][:keep]


def sky(rng, density_per_frame):
    """Stars of three frames by three, the middle one at 0 to 1000."""
    n = rng.poisson(9 * density_per_frame)
    return rng.uniform(-SIZE_PX, 2 * SIZE_PX, (n, 2)), rng.exponential(1.0, n)


def pair(rng, matrix, *, density_per_frame=60, **how):
    xy, magnitude = sky(rng, density_per_frame)
    moved = np.column_stack(apply(matrix, xy[:, 0], xy[:, 1]))
    return seen(rng, xy, magnitude, **how), seen(rng, moved, magnitude, **how)


def unrelated(rng, **how):
    return seen(rng, *sky(rng, 60), **how), seen(rng, *sky(rng, 60), **how)


def error_px(result, matrix):
    assert isinstance(result, Alignment), result
    there, truth = apply(result.matrix, *CORNERS), apply(matrix, *CORNERS)
    return np.hypot(there[0] - truth[0], there[1] - truth[1]).max()


def test_positions_follow_the_frame_and_not_its_opposite():
    matrix = similarity(rotation_deg=30.0, shift_px=(20.0, -13.0))
    reference, frame = pair(np.random.default_rng(1), matrix, noise_px=0.02, spurious=0.1)
    result = align(reference, frame)
    assert error_px(result, matrix) < 0.1
    assert result.rotation_deg == pytest.approx(30.0, abs=0.01)
    assert result.scale == pytest.approx(1.0, abs=1e-4)
    assert_allclose(shift_at(result.matrix, 500.0, 500.0), (20.0, -13.0), atol=0.05)
    assert result.residual_px < 0.06


def test_related_frames_are_solved():
    rng = np.random.default_rng(2)
    solved, n_pairs = 0, 10_000
    for k in range(n_pairs):
        matrix = similarity(
            rotation_deg=180.0 if k % 4 == 0 else rng.uniform(0, 360),
            shift_px=rng.uniform(-SIZE_PX / 3, SIZE_PX / 3, 2),
            scale=rng.uniform(0.998, 1.002),
        )
        result = align(*pair(rng, matrix))
        if isinstance(result, Alignment):
            assert error_px(result, matrix) < 1.5
            solved += 1
    assert solved >= 0.999 * n_pairs


def test_unrelated_frames_are_refused_with_a_reason():
    rng = np.random.default_rng(3)
    for _ in range(400):  # none of 10,000 was accepted; each is tried by every way there is
        result = align(*unrelated(rng))
        assert isinstance(result, Refusal)
        assert "match" in result.reason or "asterisms" in result.reason


def test_unrelated_frames_are_refused_with_a_prediction_too():
    rng = np.random.default_rng(4)
    for _ in range(50):
        prediction = similarity(rotation_deg=rng.uniform(0, 360), shift_px=(0, 0))
        assert isinstance(align(*unrelated(rng), prediction=prediction), Refusal)


def test_a_prediction_a_few_pixels_off_is_mended():
    rng = np.random.default_rng(5)
    matrix = similarity(rotation_deg=179.7, shift_px=(31.0, -12.0))
    reference, frame = pair(rng, matrix, noise_px=0.05)
    prediction = similarity(rotation_deg=179.7, shift_px=(27.5, -9.0))
    assert error_px(align(reference, frame, prediction=prediction), matrix) < 0.15


@pytest.mark.parametrize("value", [0.0, np.nan, 1.0])
def test_a_useless_prediction_does_no_harm(value):
    matrix = similarity(rotation_deg=77.0, shift_px=(120.0, 40.0))
    reference, frame = pair(np.random.default_rng(6), matrix)
    result = align(reference, frame, prediction=np.full((2, 3), value))
    assert error_px(result, matrix) < 0.5


@pytest.mark.parametrize("n_stars", [6, 8, 10])
def test_fields_of_few_stars(n_stars):
    rng = np.random.default_rng(n_stars)
    for _ in range(40):
        matrix = similarity(rotation_deg=rng.uniform(-3, 3), shift_px=rng.uniform(-40, 40, 2))
        xy = rng.uniform(100, 900, (n_stars, 2))
        frame = np.column_stack(apply(matrix, *xy.T)) + rng.normal(0, 0.1, xy.shape)
        frame = np.vstack((rng.uniform(0, SIZE_PX, (1, 2)), frame[: n_stars - 1]))
        assert error_px(align(xy, frame), matrix) < 2.0


def test_hits_brighter_than_every_star_do_not_matter():
    rng = np.random.default_rng(7)
    matrix = similarity(rotation_deg=2.0, shift_px=(8.0, 3.0))
    reference, frame = pair(rng, matrix, noise_px=0.05)
    frame = np.vstack((rng.uniform(0, SIZE_PX, (8, 2)), frame))
    assert error_px(align(reference, frame), matrix) < 0.2


def test_the_wrong_scale_is_refused():
    matrix = similarity(rotation_deg=10.0, shift_px=(5.0, 5.0), scale=1.05)
    reference, frame = pair(np.random.default_rng(8), matrix)
    assert isinstance(align(reference, frame), Refusal)
    result = align(reference, frame, max_scale_error=0.08)
    assert error_px(result, matrix) < 0.5
    assert result.scale == pytest.approx(1.05, abs=1e-3)


def test_a_mirror_image_only_where_allowed():
    matrix = similarity(rotation_deg=40.0, shift_px=(25.0, -60.0), mirror=True)
    reference, frame = pair(np.random.default_rng(9), matrix, noise_px=0.05)
    assert isinstance(align(reference, frame), Refusal)
    result = align(reference, frame, allow_mirror=True)
    assert error_px(result, matrix) < 0.2
    assert np.linalg.det(result.matrix[:, :2]) < 0
    assert result.rotation_deg == pytest.approx(40.0, abs=0.05)


def test_an_affine_model_follows_a_shear():
    matrix = similarity(rotation_deg=20.0, shift_px=(12.0, 7.0)) + np.array(
        [[0.0, 0.004, 0.0], [0.0, 0.0, 0.0]]
    )
    reference, frame = pair(np.random.default_rng(10), matrix, noise_px=0.05, spurious=0.1)
    affine = align(reference, frame, model="affine", tolerance_px=3.0)
    assert error_px(affine, matrix) < 0.2
    assert affine.residual_px < 0.12
    plain = align(reference, frame, tolerance_px=3.0)
    assert plain.residual_px > 0.3


def test_moved_and_blended_stars_do_not_pull_the_fit():
    rng = np.random.default_rng(11)
    matrix = similarity(rotation_deg=0.0, shift_px=(3.0, -2.0))
    reference = rng.uniform(0, SIZE_PX, (30, 2))
    frame = np.column_stack(apply(matrix, *reference.T)) + rng.normal(0, 0.01, (30, 2))
    frame[:5] += 1.2
    assert error_px(align(reference, frame), matrix) < 0.05


def test_more_stars_than_are_searched_are_all_matched():
    rng = np.random.default_rng(12)
    matrix = similarity(rotation_deg=5.0, shift_px=(3.0, -2.0))
    reference = rng.uniform(0, SIZE_PX, (300, 2))
    frame = np.column_stack(apply(matrix, *reference.T)) + rng.normal(0, 0.1, (300, 2))
    result = align(reference, frame)
    assert result.n_matched > 285
    assert error_px(result, matrix) < 0.05


@pytest.mark.parametrize("mirror", [False, True])
def test_a_similarity_of_unknown_scale(mirror):
    rng = np.random.default_rng(13)
    true = similarity(rotation_deg=200.0, shift_px=(4.0, 9.0), mirror=mirror)
    matrix = np.diag([0.00143, 0.00143]) @ true
    xy, magnitude = sky(rng, 60)
    pixels = seen(rng, xy, magnitude, noise_px=0.2)
    inside = ((xy > -100) & (xy < SIZE_PX + 100)).all(axis=1)
    brightest = np.argsort(-magnitude[inside])[:70]
    degrees = np.column_stack(apply(matrix, *xy[inside][brightest].T))
    result = find_similarity(
        pixels,
        degrees,
        scale_range=(0.0008, 0.0025),
        allow_mirror=True,
        tolerance=0.00143 * 2.0,
        min_matched=6,
    )
    assert error_px(result, matrix) < 0.00143 * 0.5
    assert result.scale == pytest.approx(0.00143, rel=1e-3)


def test_unrelated_lists_of_unknown_scale_are_refused():
    rng = np.random.default_rng(14)
    for _ in range(8):
        a, b = unrelated(rng, keep=40)
        result = find_similarity(
            a, b, scale_range=(0.5, 2.0), allow_mirror=True, tolerance=2.0, min_matched=5
        )
        assert isinstance(result, Refusal)


def test_two_runs_give_the_same_bits():
    reference, frame = pair(
        np.random.default_rng(15), similarity(rotation_deg=33.0, shift_px=(90.0, -20.0))
    )
    assert_array_equal(align(reference, frame).matrix, align(reference, frame).matrix)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 8),
    m=st.integers(0, 8),
    kind=st.sampled_from(["one place", "a line", "nan", "grid"]),
)
def test_poor_lists_are_refused_and_not_an_error(n, m, kind):
    def poor(size):
        k = np.arange(float(size))
        places = {
            "one place": np.ones((size, 2)),
            "a line": np.column_stack((k, k)),
            "nan": np.full((size, 2), np.nan),
            "grid": np.column_stack((k % 2, k // 2)),
        }
        return places[kind]

    result = align(poor(n), poor(m))
    assert isinstance(result, Refusal)
    if min(n, m) < 5:
        assert "must match" in result.reason


def test_empty_lists_are_refused():
    assert align(np.empty((0, 2)), np.empty(0)).n_matched == 0


@settings(max_examples=30, deadline=None)
@given(
    rotation_deg=st.floats(0, 360),
    shift_px=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    scale=st.floats(0.1, 10),
    mirror=st.booleans(),
)
def test_inverse_brings_back(rotation_deg, shift_px, scale, mirror):
    matrix = similarity(rotation_deg=rotation_deg, shift_px=shift_px, scale=scale, mirror=mirror)
    assert_allclose(apply(invert(matrix), *apply(matrix, *CORNERS)), CORNERS, atol=1e-6)


def test_what_has_no_inverse_is_refused():
    with pytest.raises(ValueError, match="cannot be inverted"):
        invert(np.zeros((2, 3)))


def test_match_is_one_to_one_and_nearest():
    identity = np.eye(3)[:2]
    source = np.array([[0.0, 0.0], [1.0, 0.0], [50.0, 50.0], [9.0, 9.0]])
    target = np.array([[70.0, 1.0], [0.9, 0.1], [50.0, 51.0], [9.0, 20.0]])
    assert match(source, target, identity, 2.0).tolist() == [[1, 1], [2, 2]]
    rng = np.random.default_rng(16)
    source, target = rng.uniform(0, 100, (200, 2)), rng.uniform(0, 100, (150, 2))
    far = np.hypot(*(source[:, None] - target[None]).transpose(2, 0, 1))
    claims = {i: int(far[i].argmin()) for i in range(200) if far[i].min() < 4.0}
    expected = [
        [i, j]
        for i, j in claims.items()
        if far[i, j] == min(far[k, j] for k in claims if claims[k] == j)
    ]
    assert match(source, target, identity, 4.0).tolist() == expected


def test_wrong_arguments_are_refused():
    xy = np.random.default_rng(17).uniform(0, 100, (9, 2))
    with pytest.raises(ValueError, match="points must be"):
        align(xy.T, xy)
    with pytest.raises(ValueError, match="min_matched"):
        align(xy, xy, min_matched=2)
    with pytest.raises(ValueError, match="tolerance"):
        align(xy, xy, tolerance_px=0.0)
    with pytest.raises(ValueError, match="max_scale_error"):
        align(xy, xy, max_scale_error=1.0)
    with pytest.raises(ValueError, match="scale_range"):
        find_similarity(
            xy, xy, scale_range=(2.0, 1.0), allow_mirror=True, tolerance=1.0, min_matched=5
        )
