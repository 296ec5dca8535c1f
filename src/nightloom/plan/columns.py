"""Columns of the frame table as the plan asks for them: a few rows at once, at no cost a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

Rows = NDArray[np.int32]

# Text that is another one in each frame; all other text has few values.
OWN_TEXTS = ("path", "digest")
CODED = (
    "root", "instrument", "filter", "read_mode", "overscan_section", "data_section", "night",
    "field", "reason",
)  # fmt: skip
NUMBERS = (
    "hdu", "size_bytes", "ny", "nx", "binning", "jd_utc", "exposure_s", "gain_e_per_adu",
    "read_noise_e", "saturation_adu", "ra_deg", "dec_deg", "pixel_scale_arcsec", "site_lat_deg",
    "site_lon_deg", "site_height_m", "aperture_m", "ccd_temp_c", "suspect",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class FrameColumns:
    """The frame table by column: numbers as they are, text with few values as codes of these."""

    numbers: dict[str, NDArray[Any]]
    codes: dict[str, NDArray[np.int32]]
    texts: dict[str, NDArray[np.object_]]  # what the codes mean
    own: dict[str, pa.Array]

    def array(self, name: str, rows: Rows) -> NDArray[Any]:
        """Values of some rows, text as objects."""
        if name in self.numbers:
            return self.numbers[name][rows]
        if name in self.codes:
            return self.texts[name][self.codes[name][rows]]
        taken = self.own[name].take(pa.array(rows))
        return np.asarray(taken.to_numpy(zero_copy_only=False), dtype=object)


def columns_of(frames: pd.DataFrame) -> FrameColumns:
    """The columns of a frame table; numbers and long texts are not copied."""
    codes, texts = {}, {}
    for name in CODED:
        numbers, values = pd.factorize(frames[name])
        codes[name] = numbers.astype(np.int32)
        texts[name] = values.to_numpy(dtype=object)
    own = {name: _one_chunk(pa.array(frames[name])) for name in OWN_TEXTS}
    return FrameColumns({name: frames[name].to_numpy() for name in NUMBERS}, codes, texts, own)


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
