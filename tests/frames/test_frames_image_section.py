"""Sections of an image as headers write them, and which of them are used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightloom.config import Instrument
from nightloom.errors import ConfigError, FrameError
from nightloom.frames.cards import split_cards
from nightloom.frames.clock import Findings
from nightloom.frames.image_section import (
    ImageSection,
    check_profile_sections,
    parse_section,
    section_columns,
    section_within,
)
from nightloom.frames.rules import choose_rules

NY, NX = 100, 132
SIDE, DATA = "[101:132,1:100]", "[1:100,1:100]"


def columns_of(
    *lines: str, is_corrected: bool = False, **profiles: Instrument
) -> tuple[str, str, Findings]:
    cards = split_cards(b"".join(line.encode().ljust(80) for line in lines))
    findings: Findings = []
    columns = section_columns(
        cards, rules=choose_rules(cards, tuple(profiles.items()), {}), ny=NY, nx=NX,
        where="a.fits[0]", is_corrected=is_corrected, findings=findings,
    )  # fmt: skip
    return str(columns["overscan_section"]), str(columns["data_section"]), findings


@pytest.mark.parametrize("text", ["[3:7,2:9]", "[7:3,9:2]", " [ 3 : 7 , 9:2 ] "])
def test_both_ends_are_part_of_it_in_either_order(text: str) -> None:
    section = parse_section(text, where="a")
    assert section == ImageSection(2, 7, 1, 9)
    assert (section.rows, section.columns) == (slice(1, 9), slice(2, 7))


@given(st.lists(st.integers(1, 5000), min_size=4, max_size=4))
def test_what_is_written_is_read_back(ends: list[int]) -> None:
    section = parse_section("[{}:{},{}:{}]".format(*ends), where="a")
    assert parse_section(section.text, where="a") == section
    assert section.x1 - section.x0 == abs(ends[0] - ends[1]) + 1


@pytest.mark.parametrize("text", ["", "[1:2]", "1:2,3:4", "[1:2,3:4", "[a:b,c:d]", "[0:5,1:5]"])
def test_bad_text_names_file_key_and_value(text: str) -> None:
    with pytest.raises(FrameError) as error:
        parse_section(text, where="a.fits[0] BIASSEC")
    assert "a.fits[0] BIASSEC" in str(error.value)
    assert f"'{text}'" in str(error.value)


def test_a_section_beyond_the_frame_is_refused() -> None:
    with pytest.raises(FrameError, match=r"DATASEC: '\[1:133,1:100\]' is not all inside"):
        section_within("[1:133,1:100]", ny=NY, nx=NX, where="a.fits[0] DATASEC")


def test_the_header_s_sections_are_taken_and_trimsec_is_the_narrower() -> None:
    told = (f"BIASSEC = '{SIDE}'", "DATASEC = '[1:100,1:100]'", "TRIMSEC = '[3:98,1:100]'")
    assert columns_of(*told) == (SIDE, "[3:98,1:100]", [])
    assert columns_of(*told[:2]) == (SIDE, DATA, [])


def test_without_a_section_of_the_data_they_are_what_lies_beside_the_overscan() -> None:
    assert columns_of(f"BIASSEC = '{SIDE}'") == (SIDE, DATA, [])
    assert columns_of("BIASSEC = '[1:132,91:100]'")[1] == "[1:132,1:90]"


def test_a_header_without_sections_or_with_the_whole_frame_is_as_before() -> None:
    for told in (
        "OBJECT  = 'M 31'", "DATASEC = '[1:132,1:100]'", "BIASSEC = 'N/A'",
        "BIASSEC = '[0:0,0:0]'", "TRIMSEC = ''",
    ):  # fmt: skip
        assert columns_of(told) == ("", "", [])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("BIASSEC = '[101:140,1:100]'", "BIASSEC: '[101:140,1:100]' is not all inside"),
        ("BIASSEC = '[101;132]'", "BIASSEC: '[101;132]' is no section"),
        ("BIASSEC = '[1:132,1:100]'", "lies on the data"),
    ],
)
def test_what_makes_no_sense_is_found_and_not_used(told: str, words: str) -> None:
    overscan, _, findings = columns_of(told)
    assert overscan == ""
    assert [name for name, _ in findings] == ["section_unused"]
    assert words in findings[0][1]


def test_what_was_subtracted_before_is_not_again() -> None:
    told = (f"BIASSEC = '{SIDE}'", f"DATASEC = '{DATA}'")
    assert columns_of(*told, is_corrected=True) == ("", DATA, [])
    done = "OVERSCAN= 'Mar  1 20:11 Overscan section is [101:132,1:100] with mean=512'"
    assert columns_of(*told, done) == ("", DATA, [])


def test_the_profile_goes_over_the_header() -> None:
    told = f"BIASSEC = '{SIDE}'"
    assert columns_of(told, cam=Instrument(overscan_section="none")) == ("", "", [])
    narrow = Instrument(overscan_section="[132:110,1:100]", data_section=DATA)
    assert columns_of(told, cam=narrow) == ("[110:132,1:100]", DATA, [])


def test_a_profile_s_section_that_is_none_is_an_error_of_the_configuration() -> None:
    check_profile_sections({"cam": Instrument(overscan_section=SIDE, data_section="none")})
    with pytest.raises(ConfigError, match=r"instrument.cam.data_section: '\[1:5\]' is no section"):
        check_profile_sections({"cam": Instrument(data_section="[1:5]")})
