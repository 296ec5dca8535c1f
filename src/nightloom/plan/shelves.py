"""Masters in order of night, as columns: which of thousands fit a frame, asked once a cube."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from nightloom.config import CalibrationSection

SAME_EXPOSURE = 0.01  # relative
SECTIONS = ("overscan_section", "data_section")
SHARED = ("instrument", "ny", "nx", "binning", "read_mode", *SECTIONS)
IMAGE_TYPES = ("bias", "dark", "flat")

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kit:
    """A master to be: what all its frames share, and which rows of the frame table they are."""

    product: str
    image_type: str
    instrument: str
    ny: int
    nx: int
    binning: int
    read_mode: str
    night: str
    exposure_s: float
    filter: str
    ccd_temp_c: float
    rows: tuple[int, ...]
    overscan_section: str = ""
    data_section: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the frames to be calibrated are like."""

    instrument: str
    ny: int
    nx: int
    binning: int
    read_mode: str
    night: str
    exposure_s: float
    filter: str
    ccd_temp_c: float
    overscan_section: str = ""
    data_section: str = ""


@dataclass(frozen=True, slots=True)
class Shelf:
    """The masters of one type in order of night; `places` are those that come into question."""

    image_type: str
    kits: tuple[Kit, ...]
    places: Places  # in order
    day: NDArray[np.int64]
    exposure_s: NDArray[np.float64]
    ccd_temp_c: NDArray[np.float64]
    filter: NDArray[np.object_]
    camera: NDArray[np.int64]  # its number in `cameras`
    cameras: dict[tuple[object, ...], int]

    def same_exposure(self, exposure_s: float) -> Shelf:
        """Those of one exposure time."""
        apart = np.abs(self.exposure_s - exposure_s)
        equal = apart <= SAME_EXPOSURE * np.maximum(self.exposure_s, exposure_s)
        return replace(self, places=np.flatnonzero(equal))

    def same_filter(self, name: str) -> Shelf:
        """Those of one filter."""
        return replace(self, places=np.flatnonzero(self.filter == name))

    def between(self, first_day: int, last_day: int) -> Places:
        """Places of some nights, both ends with them."""
        bounds = np.searchsorted(self.day, [first_day, last_day + 1])
        start, stop = np.searchsorted(self.places, bounds)
        return self.places[start:stop]

    def has_camera(self, wanted: Wanted) -> bool:
        """Whether any is of the frames' camera, shape, read mode and sections."""
        return bool((self.camera[self.places] == self._camera_of(wanted)).any())

    def fits(
        self, places: Places, wanted: Wanted, settings: CalibrationSection
    ) -> NDArray[np.bool_]:
        """Which of some places are of the frames' camera, and no warmer or colder than allowed."""
        of_camera = np.asarray(self.camera[places] == self._camera_of(wanted))
        # A flat does not depend on the temperature as a dark does.
        if self.image_type == "flat":
            return of_camera
        apart = np.abs(self.ccd_temp_c[places] - wanted.ccd_temp_c)
        return of_camera & (~np.isfinite(apart) | (apart <= settings.max_temp_difference_c))

    def _camera_of(self, wanted: Wanted) -> int:
        return self.cameras.get(_camera(wanted), -1)


Shelves = dict[str, Shelf]


def shelves_of(kits: Sequence[Kit]) -> Shelves:
    """Masters by their type."""
    return {
        name: _shelf(name, [kit for kit in kits if kit.image_type == name]) for name in IMAGE_TYPES
    }


def _shelf(image_type: str, kits: list[Kit]) -> Shelf:
    ordered = sorted(kits, key=lambda kit: kit.night)
    cameras: dict[tuple[object, ...], int] = {}
    return Shelf(
        image_type=image_type,
        kits=tuple(ordered),
        places=np.arange(len(ordered)),
        day=np.array([day_of(kit.night) for kit in ordered], dtype=np.int64),
        exposure_s=np.array([kit.exposure_s for kit in ordered], dtype=np.float64),
        ccd_temp_c=np.array([kit.ccd_temp_c for kit in ordered], dtype=np.float64),
        filter=np.array([kit.filter for kit in ordered], dtype=object),
        camera=np.array(
            [cameras.setdefault(_camera(kit), len(cameras)) for kit in ordered], dtype=np.int64
        ),
        cameras=cameras,
    )


def _camera(of: Kit | Wanted) -> tuple[object, ...]:
    return tuple([getattr(of, key) for key in SHARED])


def day_of(night: str) -> int:
    """A night's number, one more for each day."""
    return date.fromisoformat(night).toordinal()
