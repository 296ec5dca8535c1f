"""What is computed from columns is what each frame would say; what is asked of masters by night."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nightloom.config import ArchiveSection, CalibrationSection, Config
from nightloom.plan.calibrations import choose, kits, wanted_of
from nightloom.plan.recipes import Plan, PlannedFrames, inputs_of, make_plan, numbers_of
from nightloom.plan.shelves import Kit
from nightloom.schema.frames import SUSPECT_BITS, frames_from_rows
from nightloom.store.fingerprint import begin, fingerprint

NIGHT = "2024-03-01"
VALUES = st.sampled_from([0.0, -0.0, 1.0, 36.25, float("nan")])


def plan_of(rows: list[dict[str, object]]) -> Plan:
    return make_plan(frames_from_rows(rows), Config(archive=ArchiveSection(frames=("x",))))


def science(k: int, **more: object) -> dict[str, object]:
    return {
        "root": "r", "path": f"é{k}.fits", "digest": f"d{k}", "size_bytes": 5 + k, "hdu": 1,
        "image_type": "science", "object": "M 13", "instrument": "cam", "night": NIGHT, "ny": 9,
        "nx": 9, "filter": "R", "exposure_s": 1.0, "jd_utc": 2460000.0 + k,
    } | more  # fmt: skip


@given(
    st.lists(st.tuples(VALUES, VALUES, st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=2),
)
def test_columns_say_what_each_frame_says(
    drawn: list[tuple[float, float, bool, bool]], more: list[tuple[str, str]]
) -> None:
    rows = [
        science(
            k, dec_deg=dec, site_height_m=height,
            suspect=SUSPECT_BITS["time_suspect"] if suspect else 0,
            data_section="[1:8,1:8]" if trimmed else "",
        )
        for k, (dec, height, suspect, trimmed) in enumerate(drawn)
    ]  # fmt: skip
    for cube in plan_of(rows).cubes:
        frames = list(cube.frames)
        inputs = [part for frame in frames for part in frame.inputs]
        numbers = [frame.numbers for frame in frames]
        assert inputs_of(cube.frames) == inputs
        assert numbers_of(cube.frames) == numbers
        whole = fingerprint(inputs=inputs + numbers + more, settings=None, version=3, kind="cube")
        parts = {"inputs": more, "settings": None, "version": 3, "kind": "cube"}
        assert fingerprint(**parts, begun=cube.frames.begun) == whole  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [[], [("a", "b")], [("a", "b"), ("c", "d")]])
@pytest.mark.parametrize("more", [[], [("e", "f")]])
def test_a_fingerprint_in_two_parts(
    first: list[tuple[str, str]], more: list[tuple[str, str]]
) -> None:
    two = fingerprint(inputs=more, settings=None, version=1, kind="cube", begun=begin(first))
    assert two == fingerprint(inputs=first + more, settings=None, version=1, kind="cube")


def test_frames_do_not_take_the_table_with_them() -> None:
    cube = plan_of([science(k) for k in range(4)]).cubes[0]
    assert isinstance(cube.frames, PlannedFrames)
    with pytest.raises(TypeError, match="whole frame table"):
        pickle.dumps(cube.frames)
    some = pickle.loads(pickle.dumps(tuple(cube.frames[1:3])))
    assert repr(some) == repr(tuple(cube.frames)[1:3])  # a NaN equals nothing
    assert [frame.path for frame in cube.some([0, 3]).frames] == ["é0.fits", "é3.fits"]


def _nearest_by_hand(
    available: list[Kit], night: int, temp_c: float, settings: CalibrationSection
) -> str:
    near = [
        (abs(int(kit.night[8:]) - night), -len(kit.rows), kit.product)
        for kit in available
        if abs(int(kit.night[8:]) - night) <= settings.max_days_bias
        and abs(kit.ccd_temp_c - temp_c) <= settings.max_temp_difference_c
        and kit.instrument == "cam"
    ]
    return min(near)[2] if near else ""


@pytest.fixture(scope="module")
def biases() -> list[dict[str, object]]:
    rng = np.random.default_rng(3)
    nights: NDArray[np.int64] = rng.integers(1, 31, 200)
    return [
        {
            "root": "r", "path": f"b{k}.fits", "image_type": "bias", "ny": 9, "nx": 9,
            "instrument": str(rng.choice(["cam", "other"])), "night": f"2024-03-{night:02d}",
            "ccd_temp_c": float(rng.choice([-20.0, -10.0])), "jd_utc": 2460000.0 + night,
            "read_mode": "",
        }
        for k, night in enumerate(nights.tolist())
        if night % 3
    ]  # fmt: skip


@pytest.mark.parametrize("max_days", [0, 2, 40])
def test_the_nearest_master_is_that_of_a_search_through_all(
    biases: list[dict[str, object]], max_days: int
) -> None:
    available = kits(frames_from_rows(biases))
    settings = CalibrationSection(max_days_bias=max_days, max_temp_difference_c=6.0)
    for night in range(1, 31):
        frame = science(0, night=f"2024-03-{night:02d}", ccd_temp_c=-15.0)
        wanted = wanted_of(frames_from_rows([frame]).iloc[0])
        by_hand = _nearest_by_hand(list(available), night, -15.0, settings)
        assert choose(wanted, available, settings).bias == by_hand
