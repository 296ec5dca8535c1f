"""The tables of names: bits and columns are unique and stable."""

from __future__ import annotations

import numpy as np
import pytest

from nightloom.schema.cube import CUBE, FIELD, LIGHTCURVE
from nightloom.schema.flags import BITS, CAVEATS, FLAGS, MISSING, cf_attributes, names_of
from nightloom.schema.frames import COLUMN_NAMES, QUARANTINE, SUSPECTS, frames_from_rows


def test_bits_are_unique_over_both_grains() -> None:
    assert len({flag.bit for flag in FLAGS}) == len({flag.name for flag in FLAGS}) == len(FLAGS)
    assert all(flag.mask & int(MISSING) == 0 for flag in FLAGS)
    assert len({s.bit for s in SUSPECTS}) == len(SUSPECTS)
    assert QUARANTINE & sum(s.mask for s in SUSPECTS if not s.quarantine) == 0


def test_flags_read_as_words() -> None:
    assert names_of(0) == []
    assert names_of(BITS["edge"] | BITS["cloudy"]) == ["cloudy", "edge"]
    assert names_of(int(MISSING)) == ["missing"]
    masks, meanings = cf_attributes("star").values()
    assert len(masks) == len(meanings.split())  # type: ignore[arg-type, attr-defined]
    names = (
        "calibration_missing", "gain_assumed", "gain_estimated", "saturation_guessed",
        "position_forced",
    )  # fmt: skip
    assert sum(BITS[name] for name in names) == CAVEATS


@pytest.mark.parametrize("table", [CUBE, FIELD, LIGHTCURVE])
def test_variables_have_meaning_and_a_fill_of_their_type(table: tuple) -> None:
    assert len({v.name for v in table}) == len(table)
    for variable in table:
        assert variable.meaning
        if variable.dtype != "str":
            assert np.array(variable.fill).astype(variable.dtype) == pytest.approx(
                variable.fill, nan_ok=True
            )


def test_frames_refuse_unknown_columns() -> None:
    frames = frames_from_rows([{"path": "a.fits", "exposure_s": 60.0}])
    assert tuple(frames.columns) == COLUMN_NAMES
    assert np.isnan(frames["gain_e_per_adu"][0])
    with pytest.raises(KeyError, match="colour"):
        frames_from_rows([{"colour": 1}])
