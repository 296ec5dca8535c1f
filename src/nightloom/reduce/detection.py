"""One frame from file to electrons and stars: what candidates, reference and cube all need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.config import Instrument, PhotometrySection
from nightloom.errors import FrameError
from nightloom.frames.image_section import ImageSection
from nightloom.image.align import Alignment, Refusal, align
from nightloom.image.calibrate import MASK_BAD, MASK_SATURATED, calibrate, variance
from nightloom.image.detect import Background, Detections, background_at, background_mesh, detect
from nightloom.image.pileup import pile_up_level
from nightloom.image.psf import PsfShape, measure_psf
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce.masters import (
    Calibration,
    MasterPaths,
    calibration_of,
    saturation_of,
)
from nightloom.reduce.overscan import data_of, offset_with_levels
from nightloom.reduce.pixels import pixels_of

START_FWHM_PX = 3.5
DETECT_STARS = 400  # of what a star list is made from
ALIGNED_STARS = 200  # where no more than a frame's place and width are asked for
ALIGN_STARS = 100
MIN_STARS = 3
MAX_SATURATED = 0.5  # fraction of the frame: then it is twilight, not a field of stars


@dataclass(frozen=True, slots=True)
class CalibratedFrame:
    """A planned frame with the masters it uses."""

    frame: PlannedFrame
    paths: MasterPaths
    instrument: Instrument


@dataclass(frozen=True, slots=True)
class Exposure:
    """A calibrated frame: electrons and mask [y, x], with what its noise needs."""

    raw: NDArray[Any]
    pixels_e: NDArray[np.float32]
    mask: NDArray[np.uint8]
    gain_e_per_adu: float
    gain_assumed: bool
    read_noise_e: float  # NaN where unknown
    dark_e: float
    flat_err: float
    saturation_guessed: bool = False  # as its pixels pile up


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen in a calibrated frame."""

    background: Background
    stars: Detections
    psf: PsfShape


def expose(
    frame: PlannedFrame, calibration: Calibration, instrument: Instrument, *, trim_px: int
) -> Exposure:
    """Read and calibrate a frame.

    Raises FrameError: it can't be read, its shape is not that of its masters, it has no number.
    """
    raw = pixels_of(frame)
    for plane in (calibration.offset, calibration.inverse_flat):
        if plane is not None and plane.shape != raw.shape:
            raise FrameError(where=frame.path, why=f"is {raw.shape}, its masters are {plane.shape}")
    gain = gain_of(frame, calibration)
    assumed = not np.isfinite(gain)
    gain = 1.0 if assumed else gain
    read_noise_e = frame.read_noise_e
    if not np.isfinite(read_noise_e):
        read_noise_e = calibration.read_noise_adu * gain
    saturation = saturation_of(frame, raw.dtype)
    guess = float("nan") if np.isfinite(frame.saturation_adu) else pile_up_level(raw)
    guessed = guess < saturation
    pixels, mask = calibrate(
        raw,
        offset=offset_with_levels(raw, frame, calibration.offset),
        inverse_flat=calibration.inverse_flat,
        bad=calibration.bad,
        gain_e_per_adu=gain,
        saturation_adu=guess if guessed else saturation,
        nonlinear_adu=instrument.nonlinear_adu,
    )
    if trim_px or frame.data_section:
        mask = trimmed(mask, data_of(frame), trim_px)
    if not any(np.isfinite(row).any() for row in pixels):
        raise FrameError(where=frame.path, why="no pixel holds a number")
    if _n_saturated(mask) > MAX_SATURATED * mask.size:
        raise FrameError(where=frame.path, why="more than half of its pixels are saturated")
    return Exposure(
        raw, pixels, mask, gain, assumed, read_noise_e, calibration.dark_adu * gain,
        calibration.flat_err, guessed,
    )  # fmt: skip


def variance_of(item: CalibratedFrame, exposure: Exposure) -> NDArray[np.float32]:
    """Variance [y, x] in e-² of a frame's pixels, for who asks: no product keeps it.

    Photons, reading, dark and flat; NaN throughout where the read noise is unknown, in ADU²
    where the gain is. Stars are weighed by errors of whole apertures, and need none of it.
    """
    calibration = calibration_of(item.paths, item.frame.exposure_s)
    return variance(
        exposure.pixels_e,
        inverse_flat=calibration.inverse_flat,
        gain_e_per_adu=exposure.gain_e_per_adu,
        read_noise_e=exposure.read_noise_e,
        dark_e=exposure.dark_e,
        flat_err=exposure.flat_err,
    )


def gain_of(frame: PlannedFrame, calibration: Calibration) -> float:
    """Gain as header or profile say, else as pairs of flats show it, else NaN."""
    if np.isfinite(frame.gain_e_per_adu):
        return frame.gain_e_per_adu
    return calibration.gain_e_per_adu


def _n_saturated(mask: NDArray[np.uint8]) -> int:
    """Saturated pixels, none looked for where any flag at all is rarer than too many of them."""
    marked = np.count_nonzero(mask)
    return int(np.count_nonzero(mask & MASK_SATURATED)) if marked > MAX_SATURATED * mask.size else 0


def trimmed(mask: NDArray[np.uint8], data: ImageSection, trim_px: int) -> NDArray[np.uint8]:
    """The mask with what holds no data, and a border of what does, as bad: never used.

    Coordinates stay those of the raw frame.
    """
    out = mask | np.uint8(MASK_BAD)
    inner = (
        slice(data.y0 + trim_px, data.y1 - trim_px),
        slice(data.x0 + trim_px, data.x1 - trim_px),
    )
    out[inner] = mask[inner]
    return out


def look(
    exposure: Exposure, *, fwhm_px: float, settings: PhotometrySection,
    max_stars: int = DETECT_STARS,
) -> Sight:  # fmt: skip
    """Background, stars and PSF of a frame; the kernel's width is corrected once if far off."""
    background = background_mesh(exposure.pixels_e, exposure.mask)
    stars = _detect(exposure, background, fwhm_px, settings, max_stars)
    psf = _psf(exposure, background, stars, fwhm_px)
    if psf.n_stars and not 0.7 < psf.fwhm_px / fwhm_px < 1.4:
        stars = _detect(exposure, background, psf.fwhm_px, settings, max_stars)
        psf = _psf(exposure, background, stars, psf.fwhm_px)
    return Sight(background, stars, psf)


def _detect(
    exposure: Exposure, background: Background, fwhm_px: float, settings: PhotometrySection,
    max_stars: int,
) -> Detections:  # fmt: skip
    return detect(
        exposure.pixels_e,
        exposure.mask,
        background,
        fwhm_px=fwhm_px,
        threshold_sigma=settings.detection_sigma,
        max_stars=max_stars,
    )


def _psf(exposure: Exposure, background: Background, stars: Detections, fwhm_px: float) -> PsfShape:
    level, _ = background_at(background, stars.x_px, stars.y_px)
    return measure_psf(
        exposure.pixels_e,
        exposure.mask,
        stars.x_px,
        stars.y_px,
        background_e=level,
        saturated=stars.saturated,
        blended=stars.blended,
        guess_fwhm_px=fwhm_px,
    )


def place(
    reference_xy: NDArray[np.float64], sight: Sight, *, settings: PhotometrySection
) -> Alignment | Refusal:
    """Where the reference lies in the frame.

    reference_xy: [star, 2], brightest first.
    """
    found = np.column_stack([sight.stars.x_px, sight.stars.y_px])[:ALIGN_STARS]
    fwhm_px = sight.psf.fwhm_px if sight.psf.n_stars else START_FWHM_PX
    return align(
        reference_xy[:ALIGN_STARS],
        found,
        min_matched=settings.min_matched,
        tolerance_px=max(1.5, 0.4 * fwhm_px),
        model="similarity" if len(found) < 12 else "affine",
    )
