"""The WCS of a header as text: its cards and no others."""

from __future__ import annotations

import re
from pathlib import Path

from nightloom.errors import FrameError
from nightloom.frames.cards import CARD_BYTES
from nightloom.frames.fits import merged_cards, read_hdus

_WCS = re.compile(
    r"WCSAXES|C(?:TYPE|UNIT|RVAL|RPIX|DELT|ROTA)[12]|CD[12]_[12]|PC[12]_[12]|PV[12]_\d+"
    r"|LON(?:GPOLE)|LATPOLE|RADESYS|RADECSYS|EQUINOX|[AB]P?_(?:ORDER|\d_\d)"
)


def wcs_text(path: Path, hdu_index: int) -> str | None:
    """Header text of the celestial WCS of an image, None where it has none.

    Raises FrameError: no such HDU, or the header can't be read.
    """
    hdus = read_hdus(path)
    hdu = next((one for one in hdus if one.index == hdu_index), None)
    if hdu is None:
        raise FrameError(where=f"{path}[{hdu_index}]", why="no such HDU")
    cards = merged_cards(hdus, hdu)
    if "CTYPE1" not in cards or "CRVAL1" not in cards or not cards["CTYPE1"].strip(" '/"):
        return None
    kept = [
        f"{keyword:<8}= {text}"[:CARD_BYTES].ljust(CARD_BYTES)
        for keyword, text in cards.items()
        if _WCS.fullmatch(keyword)
    ]
    return "".join([*kept, "END".ljust(CARD_BYTES)])
