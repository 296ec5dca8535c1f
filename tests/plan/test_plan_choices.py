"""Fields and masters: who belongs where, which master and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from nightloom.config import ArchiveSection, CalibrationSection, Config
from nightloom.plan.calibrations import Choice, choose, kits, wanted_of
from nightloom.plan.fields import assign_fields, separation_deg, slug
from nightloom.plan.recipes import NUMBERS, make_plan
from nightloom.schema.frames import frames_from_rows
from nightloom.store.fingerprint import digest_of

DAYS = ("2024-03-01", "2024-03-04", "2024-03-20", "2024-06-01")


def row(image_type: str, night: str = DAYS[0], **more: object) -> dict[str, object]:
    number = more.pop("number", 1)
    base: dict[str, object] = {
        "root": "r", "path": f"{image_type}-{night}-{more}-{number}.fits", "instrument": "cam",
        "image_type": image_type, "night": night, "exposure_s": 60.0 * (image_type != "bias"),
        "ny": 100, "nx": 100, "ccd_temp_c": -20.0, "jd_utc": 2460000.0 + int(night[8:]) + number,
        "pixel_scale_arcsec": 1.0, "digest": "d", "size_bytes": 5,
    }  # fmt: skip
    if image_type in ("flat", "science"):
        base["filter"] = "R"
    if image_type == "science":
        base |= {"object": "M 13", "ra_deg": 250.0, "dec_deg": 36.0}
    return base | more


def many(n: int, *args: str, **more: object) -> list[dict[str, object]]:
    return [row(*args, number=k, **more) for k in range(n)]


def choice_of(rows: list[dict[str, object]], **science: object) -> Choice:
    frames = frames_from_rows(rows)
    wanted = wanted_of(frames_from_rows([row("science", **science)]).iloc[0])
    return choose(wanted, kits(frames), CalibrationSection())


def test_nearest_valid_master_with_its_reason() -> None:
    """Trap 18: nearest, not latest; never another camera, shape or temperature."""
    rows = many(3, "bias", DAYS[0]) + many(5, "bias", DAYS[1]) + many(9, "bias", DAYS[2])
    rows += many(3, "dark", DAYS[1])
    rows += many(3, "flat", DAYS[2]) + many(3, "flat", DAYS[0], filter="V")
    choice = choice_of(rows, night="2024-03-05")
    assert choice.bias.endswith(DAYS[1])
    assert choice.reasons[0] == "bias of 2024-03-04, 1 d away (5 frames)"
    assert DAYS[2] in choice.flat
    assert choice.missing == ()


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"instrument": "other"}, "another camera, shape, read mode or overscan"),
        ({"nx": 50}, "another camera, shape, read mode or overscan"),
        ({"read_mode": "fast"}, "another camera, shape, read mode or overscan"),
        ({"ccd_temp_c": -10.0}, "temperature differs by over 2 C"),
        ({"night": DAYS[3]}, "no bias within 30 d"),
    ],
)
def test_unfit_masters_are_refused_in_words(other: dict[str, object], why: str) -> None:
    choice = choice_of([{**one, **other} for one in many(3, "bias")])
    assert choice.bias == ""
    assert why in choice.reasons[0]
    assert choice.missing == ("bias, dark", "flat")


def test_dark_is_scaled_only_about_a_bias() -> None:
    darks = many(3, "dark", exposure_s=300.0)
    without = choice_of(darks)
    assert without.dark == ""
    assert "without a bias" in without.reasons[1]
    with_bias = choice_of(darks + many(3, "bias"))
    assert "scaled from 300 to 60 s" in with_bias.reasons[1]
    equal = choice_of(darks + many(3, "dark") + many(3, "bias"))
    assert "_60s" in equal.dark


def test_two_nights_in_one_folder_have_two_masters() -> None:
    """Trap 20."""
    frames = frames_from_rows(many(3, "bias", DAYS[0]) + many(3, "bias", DAYS[1]))
    assert len({kit.product for kit in kits(frames)}) == 2


def test_fields_part_by_pointing_and_camera() -> None:
    rows = many(6, "science") + many(6, "science", dec_deg=40.0, night=DAYS[1])
    rows += many(6, "science", nx=50, night=DAYS[2])
    rows += many(1, "science", dec_deg=45.0, night=DAYS[3])  # a stray: alignment judges it
    fields = assign_fields(frames_from_rows(rows))
    assert fields[:6].unique().tolist() == ["M-13"]
    assert fields[6:12].unique().tolist() == ["M-13-2"]
    assert fields[12:18].unique().tolist() == ["M-13-3"]
    assert fields[18] == "M-13"


def test_fields_across_zero_hours() -> None:
    rows = [row("science", ra_deg=ra, number=k) for k, ra in enumerate([359.99, 0.01] * 4)]
    assert assign_fields(frames_from_rows(rows)).unique().tolist() == ["M-13"]
    assert separation_deg(pd.Series([359.9]).to_numpy(), pd.Series([0.0]).to_numpy(), 0.1, 0.0)[
        0
    ] == pytest.approx(0.2)


def test_plan_of_an_archive_without_calibration() -> None:
    config = Config(archive=ArchiveSection(frames=("x",)))
    plan = make_plan(frames_from_rows(many(6, "science")), config)
    assert [cube.product for cube in plan.cubes] == [f"cube/M-13/{DAYS[0]}/R"]
    assert plan.cubes[0].missing == ("bias, dark", "flat")
    assert plan.masters_used == frozenset()


def test_calibrated_frames_are_not_calibrated_again() -> None:
    rows = [one | {"reason": "already calibrated by FLATCOR"} for one in many(6, "science")]
    plan = make_plan(
        frames_from_rows(rows + many(3, "bias")), Config(archive=ArchiveSection(frames=("x",)))
    )
    assert plan.cubes[0].choices[0].calibrated
    assert plan.cubes[0].missing == ()
    assert plan.masters_used == frozenset()


def test_frame_identity_leaves_out_where_the_archive_lies() -> None:
    plan = make_plan(
        frames_from_rows(many(6, "science")), Config(archive=ArchiveSection(frames=("x",)))
    )
    frame = plan.cubes[0].frames[0]
    moved = replace(frame, root=Path("elsewhere"))
    assert moved.identity == frame.identity
    assert moved.numbers == frame.numbers
    values = {name: getattr(frame, name) for name in NUMBERS}
    assert frame.numbers[1] == digest_of(values | {"time_suspect": frame.time_suspect})
    assert replace(frame, gain_e_per_adu=2.0).numbers != frame.numbers


def test_slug() -> None:
    assert slug("NGC 6633/β Lyr+2") == "NGC-6633-Lyr+2"
