"""How others measure a frame: the steps of eloy's tutorial, photutils by hand, sep by an expert.

Each takes a case and a stopwatch `lap`, to be called with a step's name when the step is done,
and returns positions, fluxes and backgrounds of the stars. What is not installed is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.stats import SigmaClip
from numpy.typing import NDArray
from scipy.optimize import curve_fit
from scipy.spatial import cKDTree
from skimage.measure import label, regionprops
from skimage.transform import AffineTransform
from twirl import quads
from twirl.geometry import get_transform_matrix
from twirl.match import count_cross_match

Floats = NDArray[np.float64]
Lap = Callable[[str], None]

try:
    import astroalign
    import sep
except ImportError:
    sep = astroalign = None
try:
    import photutils.aperture
    import photutils.background
    import photutils.centroids
except ImportError:
    photutils = None
try:
    from eloy import alignment, calibration, centroid, detection, photometry, psf, utils
except ImportError:
    alignment = None

N_ALIGN = 12  # as in the tutorial


@dataclass(frozen=True, slots=True)
class PeerCase:
    """A frame and what a night knows before: masters and star list.

    Masters are float64, as eloy's functions and plain numpy make them, [y, x] or one number.
    """

    file: Path
    bias: NDArray[Any]
    dark: NDArray[Any]  # a second
    flat: NDArray[Any]
    exposure_s: float
    reference_xy: Floats  # [star, 2], brightest first: those to be measured
    threshold: float  # of the tutorial's detection
    radii_fwhm: Floats
    annulus_fwhm: tuple[float, float]
    # What radii are in: ours for all, so that all sum as many pixels. Each also finds its own.
    fwhm_px: float = float("nan")


@dataclass(frozen=True, slots=True)
class PeerResult:
    xy: Floats  # [star, 2]
    flux: Floats  # [star, aperture], background taken off
    level: Floats  # [star]
    fwhm_px: float


def eloy_frame(case: PeerCase, reference: Any, lap: Lap) -> PeerResult:
    """The loop of the tutorial "Full reduction pipeline"; quadratic centroids in Ballet's place."""
    data = fits.getdata(case.file)
    image = calibration.calibrate(data, case.exposure_s, case.dark, case.flat, case.bias)
    lap("calibrate")
    regions = detection.stars_detection(image, threshold=case.threshold)
    coords = np.array([(r.centroid[1], r.centroid[0]) for r in regions])
    lap("detect")
    cutouts = utils.cutout(image, coords, (50, 50))
    normalized = cutouts / np.nanmax(cutouts, (1, 2))[:, None, None]
    shape = psf.fit_gaussian(np.nanmedian(normalized, 0))
    fwhm = psf.gaussian_sigma_to_fwhm * np.mean([shape["sigma_x"], shape["sigma_y"]])
    lap("fwhm")
    matrix = alignment.rotation_matrix(coords[:N_ALIGN], case.reference_xy[:N_ALIGN], reference)
    if matrix is None:
        matrix = np.eye(3)
    aligned = AffineTransform(matrix)(case.reference_xy)
    lap("align")
    xy = centroid.photutils_centroid(image, aligned)
    lap("centroid")
    radii = case.radii_fwhm * case.fwhm_px
    sums = photometry.aperture_photometry(image, xy, radii)
    lap("apertures")
    inner, outer = (f * case.fwhm_px for f in case.annulus_fwhm)
    level = photometry.annulus_sigma_clip_median(image, xy, inner, outer)
    flux = sums - level[:, None] * np.pi * radii**2
    lap("annulus")
    np.nanmax(utils.cutout(image, aligned, (25, 25)), axis=(1, 2))
    lap("flags")
    return PeerResult(xy, flux, level, float(fwhm))


def photutils_frame(case: PeerCase, reference: Any, lap: Lap) -> PeerResult:
    """What one writes from the manuals of photutils, scikit-image and twirl."""
    data = fits.getdata(case.file).astype(np.float64)
    image = (data - case.bias - case.exposure_s * case.dark) / case.flat
    lap("calibrate")
    background = photutils.background.Background2D(
        image, 64, filter_size=3, sigma_clip=SigmaClip(3.0),
        bkg_estimator=photutils.background.MedianBackground(),
    )  # fmt: skip
    clean = image - background.background
    lap("background")
    regions = regionprops(label(clean > 5 * background.background_rms), clean)
    regions = sorted(
        (r for r in regions if r.area >= 5), key=lambda r: r.intensity_max, reverse=True
    )
    found = np.array([r.centroid_weighted[::-1] for r in regions])
    lap("detect")
    fwhm = _gaussian_fwhm(clean, found[:50])
    lap("fwhm")
    aligned = _twirled(found, case.reference_xy, reference)
    lap("align")
    x, y = photutils.centroids.centroid_sources(
        clean, *_inside(aligned, image.shape).T, box_size=2 * max(1, round(fwhm)) + 1,
        centroid_func=photutils.centroids.centroid_com,
    )  # fmt: skip
    xy = np.column_stack([x, y])
    lap("centroid")
    radii = case.radii_fwhm * case.fwhm_px
    circles = [photutils.aperture.CircularAperture(xy, r) for r in radii]
    table = photutils.aperture.aperture_photometry(image, circles)
    sums = np.array([table[f"aperture_sum_{k}"] for k in range(len(radii))]).T
    lap("apertures")
    inner, outer = (f * case.fwhm_px for f in case.annulus_fwhm)
    ring = photutils.aperture.CircularAnnulus(xy, inner, outer)
    level = np.asarray(
        photutils.aperture.ApertureStats(
            image, ring, sigma_clip=SigmaClip(3.0, maxiters=10), sum_method="center"
        ).median
    )
    lap("annulus")
    return PeerResult(xy, sums - level[:, None] * np.pi * radii**2, level, fwhm)


def sep_frame(case: PeerCase, reference: Any, lap: Lap) -> PeerResult:
    """SExtractor as a library, by one who knows it: float32, native bytes, arrays of stars."""
    data = fits.getdata(case.file).astype(np.float32)
    offset, flat = reference
    image = (data - offset) / flat
    lap("calibrate")
    background = sep.Background(image, bw=64, bh=64)
    clean = image - background.back()
    lap("background")
    stars = sep.extract(clean, 5.0, err=background.globalrms)
    stars = stars[np.argsort(-stars["flux"])]
    lap("detect")
    fwhm = _half_light_fwhm(clean, stars[:50])
    lap("fwhm")
    found = np.column_stack([stars["x"], stars["y"]])
    transform, _ = astroalign.find_transform(
        case.reference_xy[: 2 * N_ALIGN], found[: 2 * N_ALIGN], max_control_points=2 * N_ALIGN
    )
    aligned = transform(case.reference_xy)
    lap("align")
    sigma = fwhm / 2.3548
    x, y, _ = sep.winpos(clean, aligned[:, 0], aligned[:, 1], sigma)
    lap("centroid")
    radii = case.radii_fwhm * case.fwhm_px
    sums = np.array([sep.sum_circle(image, x, y, r, subpix=0)[0] for r in radii]).T
    lap("apertures")
    level = _rings(image, x, y, *(f * case.fwhm_px for f in case.annulus_fwhm))
    lap("annulus")
    flux = sums - level[:, None] * np.pi * radii**2
    return PeerResult(np.column_stack([x, y]), flux, level, fwhm)


def eloy_reference(case: PeerCase) -> Any:
    return alignment.twirl_reference(case.reference_xy[:N_ALIGN])


def photutils_reference(case: PeerCase) -> Any:
    hashes, asterisms = quads.hashes(case.reference_xy[:N_ALIGN])
    return cKDTree(hashes), asterisms


def sep_reference(case: PeerCase) -> Any:
    """What a night's frames share: masters as float32, bias and dark in one."""
    offset = case.bias + case.exposure_s * case.dark
    return offset.astype(np.float32), case.flat.astype(np.float32)


def _inside(xy: Floats, shape: tuple[int, int]) -> Floats:
    return np.clip(xy, 6, np.array(shape[::-1]) - 7)


def _gaussian_fwhm(clean: Floats, xy: Floats) -> float:
    """Width of a Gaussian fitted to the median of normalised stamps."""
    y, x = np.mgrid[-12:13, -12:13].reshape(2, -1)
    stamps = []
    for px, py in np.rint(xy).astype(int):
        if 12 <= px < clean.shape[1] - 12 and 12 <= py < clean.shape[0] - 12:
            stamp = clean[py - 12 : py + 13, px - 12 : px + 13]
            stamps.append(stamp / stamp.max())

    def model(xy_px: Floats, height: float, sx: float, sy: float, floor: float) -> Floats:
        return height * np.exp(-0.5 * ((xy_px[0] / sx) ** 2 + (xy_px[1] / sy) ** 2)) + floor

    best, _ = curve_fit(model, (x, y), np.median(stamps, 0).ravel(), p0=(1.0, 2.0, 2.0, 0.0))
    return float(2.3548 * np.mean(np.abs(best[1:3])))


def _half_light_fwhm(clean: NDArray[Any], stars: NDArray[Any]) -> float:
    """Twice the radius of half the light within 6 px, as of a Gaussian."""
    radius, _ = sep.flux_radius(
        clean, stars["x"], stars["y"], np.full(len(stars), 6.0), 0.5, subpix=5
    )
    return float(2 * np.median(radius))


def _twirled(found: Floats, reference_xy: Floats, reference: Any) -> Floats:
    """Asterisms of the brightest stars; the transformation on which most agree, fitted to all."""
    tree, asterisms = reference
    hashes, mine = quads.hashes(found[:N_ALIGN])
    few = np.column_stack([reference_xy[:N_ALIGN], np.ones(min(N_ALIGN, len(reference_xy)))])
    best, votes = np.eye(3), 0
    for i, near in enumerate(cKDTree(hashes).query_ball_tree(tree, r=0.02)):
        for j in near:
            matrix = get_transform_matrix(asterisms[j], mine[i])
            agree = count_cross_match(found[:N_ALIGN], (few @ matrix.T)[:, :2], 2)
            if agree > votes:
                best, votes = matrix, agree
        if votes > 0.7 * N_ALIGN:
            break
    away, nearest = cKDTree(found).query(AffineTransform(best)(reference_xy))
    pairs = away < 2
    if np.count_nonzero(pairs) >= 3:
        best = get_transform_matrix(reference_xy[pairs], found[nearest[pairs]])
    return AffineTransform(best)(reference_xy)


def _rings(image: NDArray[Any], x: Floats, y: Floats, inner: float, outer: float) -> Floats:
    """Clipped medians of rings with numpy alone."""
    levels = np.full(len(x), np.nan)
    reach = int(outer) + 1
    for k, (px, py) in enumerate(zip(x, y, strict=True)):
        low_y, low_x = max(0, int(py) - reach), max(0, int(px) - reach)
        cut = image[low_y : int(py) + reach + 2, low_x : int(px) + reach + 2]
        yy, xx = np.ogrid[low_y : low_y + cut.shape[0], low_x : low_x + cut.shape[1]]
        far2 = (yy - py) ** 2 + (xx - px) ** 2
        ring = cut[(far2 >= inner**2) & (far2 < outer**2)]
        for _ in range(5):
            middle, scatter = np.median(ring), ring.std()
            kept = ring[np.abs(ring - middle) <= 3 * scatter]
            if kept.size == ring.size:
                break
            ring = kept
        levels[k] = np.median(ring)
    return levels


PEERS: dict[str, tuple[Callable[[PeerCase, Any, Lap], PeerResult], Callable[[PeerCase], Any]]] = {}
if alignment is not None:
    PEERS["eloy"] = eloy_frame, eloy_reference
if photutils is not None:
    PEERS["photutils"] = photutils_frame, photutils_reference
if sep is not None:
    PEERS["sep"] = sep_frame, sep_reference
