"""Sections of an image as headers write them: which pixels are overscan, and which hold data.

`[x1:x2,y1:y2]` counts from 1, both ends are part of it, and either may come first (IRAF's
ccdgeometry). It counts the pixels of the file, binned as they are: nearly every camera that bins
writes it so, and one that does not needs its sections in the profile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nightloom.config import Instrument
from nightloom.errors import ConfigError, FrameError
from nightloom.frames.cards import Cards, raw_of
from nightloom.frames.clock import Findings
from nightloom.frames.rules import NO_SECTION, Rules

_SECTION = re.compile(r"\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]")
_SAYS_NOTHING = re.compile(r"[\sA-Za-z/.?_-]*|\[\s*0\s*:\s*0\s*,\s*0\s*:\s*0\s*\]")
COLUMNS = ("overscan_section", "data_section")


@dataclass(frozen=True, slots=True)
class ImageSection:
    """A rectangle of pixels, from 0, its ends not part of it."""

    x0: int
    x1: int
    y0: int
    y1: int

    @property
    def rows(self) -> slice:
        return slice(self.y0, self.y1)

    @property
    def columns(self) -> slice:
        return slice(self.x0, self.x1)

    @property
    def text(self) -> str:
        """As a header would write it."""
        return f"[{self.x0 + 1}:{self.x1},{self.y0 + 1}:{self.y1}]"


def parse_section(text: str, *, where: str) -> ImageSection:
    """The section that a text names.

    Raises FrameError: it names none.
    """
    found = _SECTION.fullmatch(text.strip())
    if found is None:
        raise FrameError(
            where=where, why=f"'{text}' is no section", do="such as [1:2048,1:2048] is one"
        )
    x_first, x_last, y_first, y_last = map(int, found.groups())
    x_first, x_last = sorted((x_first, x_last))
    y_first, y_last = sorted((y_first, y_last))
    if x_first < 1 or y_first < 1:
        raise FrameError(where=where, why=f"'{text}' begins before the first pixel, which is 1")
    return ImageSection(x_first - 1, x_last, y_first - 1, y_last)


def section_within(text: str, *, ny: int, nx: int, where: str) -> ImageSection:
    """The section that a text names, in a frame of ny rows of nx pixels.

    Raises FrameError: it names none, or one that is not all in the frame.
    """
    section = parse_section(text, where=where)
    if section.x1 > nx or section.y1 > ny:
        why = f"'{text}' is not all inside the frame of {nx} x {ny} pixels"
        raise FrameError(where=where, why=why, do="set the sections in the instrument profile")
    return section


def section_columns(
    cards: Cards, *, rules: Rules, ny: int, nx: int, where: str, is_corrected: bool,
    findings: Findings,
) -> dict[str, object]:  # fmt: skip
    """The columns of overscan and data, empty where there is none or the data are all of it.

    The profile's sections count, else the header's: TRIMSEC before DATASEC, for it leaves bad
    edges out. One that can't be used is found, and the frame goes without. Where only the
    overscan is known, the data are the largest rectangle beside it. is_corrected: the overscan
    was subtracted before.
    """
    # Who corrected a frame may have cut it, too: its sections need not be those of what is left.
    heard: Findings = [] if is_corrected else findings
    bounds = {"ny": ny, "nx": nx, "where": where, "findings": heard}
    data = _first_usable(_told(cards, rules, "data_section"), **bounds)  # type: ignore[arg-type]
    overscan = None
    if not (is_corrected or "[" in raw_of(cards, "OVERSCAN")):  # IRAF's ccdproc leaves that card
        told = _told(cards, rules, "overscan_section")
        overscan = _first_usable(told, **bounds)  # type: ignore[arg-type]
    if overscan is not None:
        data = data or _beside(overscan, ny=ny, nx=nx)
        if data is None or _overlap(overscan, data):
            words = f"overscan {overscan.text} lies on the data: not used"
            findings.append(("section_unused", words))
            overscan = None
    if overscan is None and data == ImageSection(0, nx, 0, ny):
        data = None
    texts = ("" if section is None else section.text for section in (overscan, data))
    return dict(zip(COLUMNS, texts, strict=True))


def check_profile_sections(instruments: Mapping[str, Instrument]) -> None:
    """Raise ConfigError where a profile's section is none."""
    for name, profile in instruments.items():
        for column in COLUMNS:
            text = getattr(profile, column)
            if text is None or text == NO_SECTION:
                continue
            try:
                parse_section(text, where=f"instrument.{name}.{column}")
            except FrameError as error:
                raise ConfigError(where=error.where, why=error.why, do=error.do) from None


def _told(cards: Cards, rules: Rules, column: str) -> Mapping[str, str]:
    """Keyword, or what stands for it, and text of each section that is told, the best first."""
    if column in rules.sections:
        return {f"profile {rules.profile} {column}": rules.sections[column]}
    return {key: raw_of(cards, key) for key in rules.keys[column] if key in cards}


def _first_usable(
    told: Mapping[str, str], *, ny: int, nx: int, where: str, findings: Findings
) -> ImageSection | None:
    for key, text in told.items():
        if text == NO_SECTION or _SAYS_NOTHING.fullmatch(text):
            continue
        try:
            return section_within(text, ny=ny, nx=nx, where=f"{where} {key}")
        except FrameError as error:
            findings.append(("section_unused", f"{key}: {error.why}: not used"))
    return None


def _beside(overscan: ImageSection, *, ny: int, nx: int) -> ImageSection | None:
    """The largest rectangle of the frame that holds nothing of the overscan."""
    beside = [
        ImageSection(0, overscan.x0, 0, ny),
        ImageSection(overscan.x1, nx, 0, ny),
        ImageSection(0, nx, 0, overscan.y0),
        ImageSection(0, nx, overscan.y1, ny),
    ]
    best = max(beside, key=_area)
    return best if _area(best) else None


def _area(section: ImageSection) -> int:
    return (section.x1 - section.x0) * (section.y1 - section.y0)


def _overlap(one: ImageSection, other: ImageSection) -> bool:
    in_x = max(one.x0, other.x0) < min(one.x1, other.x1)
    return in_x and max(one.y0, other.y0) < min(one.y1, other.y1)
