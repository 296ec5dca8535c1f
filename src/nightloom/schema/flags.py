"""Flags: one table of bit, name, meaning and grain, and what it means to hold them.

Bits are unique over both grains, so a light curve's flags are the OR of its frame's and its
star's. A flagged value is kept, never replaced; 0 is clean; `MISSING` fills what was never
written. A *caveat* says how something was come by (no flat was ever taken, the gain is assumed,
a position is forced): it is recorded in the cube and does not mark any single point as bad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

FLAG_DTYPE = np.uint32
MISSING = np.uint32(1 << 31)


@dataclass(frozen=True, slots=True)
class Flag:
    bit: int
    name: str
    grain: Literal["frame", "star"]
    meaning: str
    caveat: bool = False

    @property
    def mask(self) -> int:
        return 1 << self.bit


FLAGS: tuple[Flag, ...] = (
    Flag(0, "not_measured", "frame", "the frame was quarantined; its reason says why"),
    Flag(1, "cloudy", "frame", "stars are fainter than the night's best by more than 0.5 mag"),
    Flag(2, "trailed", "frame", "stars are elongated by more than the limit"),
    Flag(3, "low_match", "frame", "aligned on fewer stars than is safe"),
    Flag(4, "time_suspect", "frame", "the time of exposure is guessed or contradicts itself"),
    Flag(5, "calibration_missing", "frame", "no bias, dark or flat could be applied", caveat=True),
    Flag(6, "gain_assumed", "frame", "gain unknown and taken as 1 e-/ADU", caveat=True),
    Flag(7, "excluded", "frame", "left out by an expression of [gather] exclude"),
    Flag(8, "saturated", "star", "a pixel within the star reaches saturation"),
    Flag(9, "nonlinear", "star", "a pixel within the star lies above the linear range"),
    Flag(10, "edge", "star", "the aperture is cut by the edge of the frame, or the star is off it"),
    Flag(11, "bad_pixel", "star", "the aperture holds a masked pixel"),
    Flag(12, "cosmic_ray", "star", "the aperture holds a cosmic-ray hit"),
    Flag(13, "blended", "star", "another star of the list lies within the aperture"),
    Flag(14, "centroid_fallback", "star", "centroid failed or strayed; aligned position used"),
    Flag(15, "background_poor", "star", "too few clean pixels in the annulus"),
    Flag(16, "gain_estimated", "frame", "gain as the sky of the night shows it", caveat=True),
    Flag(17, "saturation_guessed", "frame", "saturation as its pixels pile up", caveat=True),
    Flag(18, "position_forced", "star", "aligned position used: it scatters less", caveat=True),
)

BITS: dict[str, int] = {flag.name: flag.mask for flag in FLAGS}
CAVEATS: int = sum(flag.mask for flag in FLAGS if flag.caveat)


def names_of(value: int) -> list[str]:
    """Names of the flags set in `value`, in order of their bits."""
    if value & int(MISSING):
        return ["missing"]
    return [flag.name for flag in FLAGS if value & flag.mask]


def cf_attributes(grain: Literal["frame", "star", "both"] = "both") -> dict[str, object]:
    """CF attributes `flag_masks` and `flag_meanings` of the flags of a grain."""
    chosen = [flag for flag in FLAGS if grain in ("both", flag.grain)]
    return {
        "flag_masks": [flag.mask for flag in chosen],
        "flag_meanings": " ".join(flag.name for flag in chosen),
    }
