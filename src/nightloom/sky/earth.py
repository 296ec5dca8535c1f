"""How far the tables of the Earth's rotation reach that lie on this machine."""

from __future__ import annotations

import numpy as np
from astropy.time import Time
from astropy.utils.iers import LeapSeconds, earth_orientation_table

from nightloom.sky.times import set_offline

_MJD_EPOCH_JD = 2400000.5


def leap_seconds_until_jd() -> float:
    """Julian date up to which it is known that no leap second comes."""
    set_offline()
    return float(Time(LeapSeconds.auto_open().expires).jd)


def orientation_until_jd() -> float:
    """Julian date to which the Earth's orientation is measured or predicted."""
    set_offline()
    return float(np.max(earth_orientation_table.get()["MJD"].value)) + _MJD_EPOCH_JD
