"""Times one frame, from its file to its row of the cube, beside what others need for less.

On a synthetic frame of 2048 x 2048 pixels and, where ../shared/data/hatp32 is there, on a real one
of 650 x 500. All in one process and one thread, in turn; CPU time, medians. First it checks that
all find the same. The others are the optional group `bench`: pip install -e .[bench]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from astropy.io import fits
from numba import njit
from numpy.typing import NDArray

from bench_peers import PEERS, Floats, PeerCase
from bench_timing import add_options, begin_again_in_environment, cpu_seconds, finish
from nightloom.config import Instrument, PhotometrySection
from nightloom.image.annulus import annulus_background
from nightloom.image.aperture import aperture_sums
from nightloom.plan.recipes import PlannedFrame
from nightloom.reduce import detection, measure
from nightloom.reduce.cosmic import mark_cosmic_rays
from nightloom.reduce.detection import CalibratedFrame, expose, look
from nightloom.reduce.masters import MasterPaths, calibration_of
from nightloom.reduce.measure import StarList, measure_frame
from nightloom.schema.cube import MASTER
from nightloom.store.encodings import write_store
from nightloom.synth.camera import render

FWHM_PX, EXPOSURE_S, GAIN = 4.0, 60.0, 1.5
SKY_E, BIAS_ADU, DARK_E, READ_NOISE_E = 200.0, 500.0, 5.0, 6.0
WIDE_FWHM = 2.0  # the aperture whose fluxes must agree
NAMES = ("eloy", "photutils", "sep")
# ratio: least of others' time over ours; floor: most of ours over reading and calibrating.
GATES = {
    "synthetic_2048": {"ratio_floor": 12.0, "ratio_eloy": 20.0, "ratio_sep": 5.0},
    "real_650x500": {"ratio_eloy": 15.0, "ratio_sep": 8.0},
}
STEPS = {  # of ours: where the function is called from
    "read": (detection, "pixels_of"),
    "calibrate": (detection, "calibrate"),
    "background": (detection, "background_mesh"),
    "detect": (detection, "detect"),
    "fwhm": (detection, "measure_psf"),
    "align": (detection, "align"),
    "repair": (measure, "repair_near"),
    "centroid": (measure, "_centroids"),
    "apertures": (measure, "aperture_sums"),
    "annulus": (measure, "annulus_background"),
    "flags": (measure, "peaks_and_clean_radius"),
    "errors": (measure, "_errors"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One frame for all: as ours and as the others take it."""

    name: str
    item: CalibratedFrame
    stars: StarList
    settings: PhotometrySection
    peer: PeerCase


def main(arguments: list[str] | None = None) -> int:
    """Check, time, print; 1 below the gates."""
    options = _options(arguments)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the others warn of NaN, of fits and of renamed arguments
        for case in _cases(Path(folder), options):
            _check(case)
            found[case.name] = _times(case, rounds=options.rounds)
            _show(case.name, found[case.name])
            _show_cosmic_rays(case)
    return finish(found, GATES, options, at_most=frozenset({"ratio_floor"}))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, rounds=7)
    parser.add_argument("--stars", type=int, default=800, help="stars on the synthetic frame")
    parser.add_argument("--measured", type=int, default=200, help="stars that are measured")
    parser.add_argument("--no-real", action="store_true", help="the synthetic frame only")
    return parser.parse_args(arguments)


def _cases(folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    yield _synthetic(folder, options.size, options.stars, options.measured)
    night = Path(__file__).resolve().parents[2] / "shared" / "data" / "hatp32"
    frames = sorted(night.glob("*.FITS"))
    if frames and not options.no_real:
        yield _real(folder, frames, options.measured)


def _synthetic(folder: Path, size: int, n_stars: int, n_measured: int) -> Case:
    rng = np.random.default_rng(7)
    x, y = rng.uniform(8, size - 8, (2, n_stars))
    flux_e = np.sort(10 ** rng.uniform(3.2, 5.6, n_stars))[::-1]
    light_e = render(
        size, size, x_px=x + 7.3, y_px=y - 4.6, flux_e=flux_e, fwhm_px=FWHM_PX, sky_e=SKY_E
    )
    charge_e = rng.poisson(light_e + DARK_E) + READ_NOISE_E * rng.standard_normal(light_e.shape)
    raw = np.clip(np.rint(charge_e / GAIN + BIAS_ADU), 0, 65535).astype(np.uint16)
    fits.writeto(folder / "frame.fits", raw)
    bias = (BIAS_ADU + rng.normal(0, 1, raw.shape)).astype(np.float32)
    dark = bias + np.float32(DARK_E / GAIN)
    flat = (1 + rng.normal(0, 0.003, raw.shape)).astype(np.float32)
    bad = (rng.random(raw.shape) < 0.001).astype(np.uint8)
    for kind, level in (("bias", bias), ("dark", dark), ("flat", flat)):
        spots = bad if kind == "dark" else np.zeros_like(bad)
        planes = {"noise": np.full_like(level, 0.01), "variance": np.full_like(level, 1e-5)}
        arrays = {"level": level, "bad": spots} | planes
        write_store(folder / kind, MASTER, arrays, attributes={"exposure_s": 60.0, "n_frames": 16})
    frame = _frame(folder / "frame.fits", size, size, gain=GAIN, read_noise_e=READ_NOISE_E)
    paths = MasterPaths(*(folder / kind for kind in ("bias", "dark", "flat")))
    xy = np.column_stack([x, y])[:n_measured]
    peer = PeerCase(
        frame.file, bias.astype(np.float64), (dark - bias) / np.float64(EXPOSURE_S),
        flat.astype(np.float64), EXPOSURE_S, xy, 5.0, np.linspace(0.1, 5.0, 30), (5.0, 8.0),
    )  # fmt: skip
    return _case(f"synthetic_{size}", frame, paths, peer, flux_e[:n_measured], FWHM_PX)


def _real(folder: Path, frames: list[Path], n_measured: int) -> Case:
    middle = len(frames) // 2
    raw = fits.getdata(frames[middle])
    ny, nx = raw.shape
    before, frame = (
        _frame(path, ny, nx, gain=float("nan"), read_noise_e=float("nan"))
        for path in frames[middle - 1 : middle + 1]
    )
    bare = MasterPaths()
    exposure = expose(before, calibration_of(bare, EXPOSURE_S), Instrument(), trim_px=0)
    sight = look(exposure, fwhm_px=detection.START_FWHM_PX, settings=PhotometrySection())
    found = sight.stars
    xy = np.column_stack([found.x_px, found.y_px])[:n_measured]
    nothing, one = np.zeros(1), np.ones(1)
    peer = PeerCase(
        frame.file, nothing, nothing, one, EXPOSURE_S, xy, 5.0, np.linspace(0.1, 5.0, 30),
        (5.0, 8.0),
    )  # fmt: skip
    name = f"real_{nx}x{ny}"
    return _case(name, frame, bare, peer, found.flux_e[:n_measured], sight.psf.fwhm_px)


def _frame(path: Path, ny: int, nx: int, *, gain: float, read_noise_e: float) -> PlannedFrame:
    unknown = float("nan")
    return PlannedFrame(
        root=path.parent, path=path.name, hdu=0, size_bytes=path.stat().st_size, digest="",
        instrument="", filter="", ny=ny, nx=nx, jd_utc=2460000.5, exposure_s=EXPOSURE_S,
        gain_e_per_adu=gain, read_noise_e=read_noise_e, saturation_adu=unknown, ra_deg=120.0,
        dec_deg=20.0, pixel_scale_arcsec=unknown, site_lat_deg=28.3,
        site_lon_deg=-16.5, site_height_m=2390.0, time_suspect=False,
    )  # fmt: skip


def _case(
    name: str, frame: PlannedFrame, paths: MasterPaths, peer: PeerCase, flux_e: Floats,
    fwhm_px: float,
) -> Case:  # fmt: skip
    all_of_them = np.ones(len(flux_e), dtype=bool)
    x, y = np.ascontiguousarray(peer.reference_xy.T)
    stars = StarList(x, y, flux_e, all_of_them, all_of_them, fwhm_px, EXPOSURE_S)
    settings = PhotometrySection(
        radii_fwhm=tuple(peer.radii_fwhm), radii_px=(), annulus_fwhm=peer.annulus_fwhm
    )
    item = CalibratedFrame(frame, paths, Instrument())
    row = measure_frame(item, stars, settings, trim_px=0)
    if row["reason"]:
        raise SystemExit(f"{name}: not measured: {row['reason']}")
    return Case(name, item, stars, settings, replace(peer, fwhm_px=row["fwhm_px"]))


def _check(case: Case) -> None:
    """Stop where results differ: then times say nothing.

    Positions of the brightest to 0.6 px in the median, their fluxes in 2 FWHM to 2 %, FWHM to
    25 %: each has its own method, and a centre of mass in a box is drawn to neighbours. On the
    same pixels at the same places sums agree to 1e-5 with photutils and sep, ring medians to half
    an ADU (raw counts are whole numbers) and a tenth of a pixel's noise.
    """
    row = measure_frame(case.item, case.stars, case.settings, trim_px=0)
    gain = case.item.frame.gain_e_per_adu
    at = int(np.argmin(np.abs(case.peer.radii_fwhm - WIDE_FWHM)))
    flux_adu = row["flux"][:, at] / (gain if np.isfinite(gain) else 1.0)
    for name, (run, prepare) in PEERS.items():
        result = run(case.peer, prepare(case.peer), lambda step: None)
        away = np.hypot(result.xy[:, 0] - row["x"], result.xy[:, 1] - row["y"])
        bright = away[: max(1, len(away) // 4)]
        _agree(case, f"{name} positions, px", float(np.nanmedian(bright)), 0.6)
        off = np.abs(result.flux[: len(bright), at] / flux_adu[: len(bright)] - 1)
        _agree(case, f"{name} fluxes, part", float(np.nanmedian(off)), 0.02)
        _agree(case, f"{name} FWHM, part", abs(result.fwhm_px / row["fwhm_px"] - 1), 0.25)
    _check_kernels(case, row)


def _check_kernels(case: Case, row: dict[str, Any]) -> None:
    calibration = calibration_of(case.item.paths, EXPOSURE_S)
    pixels = expose(case.item.frame, calibration, Instrument(), trim_px=0).pixels_e
    clean = np.zeros(pixels.shape, dtype=np.uint8)
    x, y = row["x"], row["y"]
    radii = case.peer.radii_fwhm * row["fwhm_px"]
    inner, outer = (f * row["fwhm_px"] for f in case.peer.annulus_fwhm)
    inside = (x > outer) & (y > outer)
    inside &= (x < pixels.shape[1] - outer) & (y < pixels.shape[0] - outer)
    x, y = x[inside], y[inside]
    sums = aperture_sums(pixels, clean, x, y, radii).flux_e
    rings = annulus_background(pixels, clean, x, y, inner_px=inner, outer_px=outer)
    if "sep" in PEERS:
        import sep

        theirs = np.array([sep.sum_circle(pixels, x, y, r, subpix=0)[0] for r in radii]).T
        _agree(case, "sep sums, part", float(np.max(np.abs(theirs / sums - 1))), 1e-5)
    if "eloy" in PEERS:
        from eloy import photometry

        xy = np.column_stack([x, y])
        theirs = photometry.aperture_photometry(pixels.astype(np.float64), xy, radii)
        _agree(case, "photutils sums, part", float(np.max(np.abs(theirs / sums - 1))), 1e-5)
        level = photometry.annulus_sigma_clip_median(pixels, xy, inner, outer)
        off = np.abs(level - rings.level_e) / (0.5 + 0.1 * rings.rms_e)
        _agree(case, "eloy ring medians, of the tolerance", float(np.median(off)), 1.0)


def _agree(case: Case, what: str, off: float, most: float) -> None:
    if not off <= most:
        raise SystemExit(f"{case.name}: {what}: differ by {off:.3g}, at most {most:g}")
    print(f"{case.name}: {what}: within {off:.2g}")


def _times(case: Case, *, rounds: int) -> dict[str, Any]:
    """Medians over rounds, all in turn within each."""
    ours: dict[str, list[float]] = {"total": [], "floor": []}
    theirs: dict[str, list[dict[str, float]]] = {name: [] for name in PEERS}
    references = {name: prepare(case.peer) for name, (_, prepare) in PEERS.items()}
    steps: dict[str, list[float]] = {name: [] for name in STEPS}
    calibration = calibration_of(case.item.paths, EXPOSURE_S)
    planes = calibration.offset, calibration.inverse_flat
    _floor(case.item.frame, *planes)  # compiled
    few_a_round = 3 if case.name.startswith("synthetic") else 10
    for _ in range(rounds):
        for _ in range(few_a_round):
            ours["total"].append(_timed(lambda: _measure(case)))
            ours["floor"].append(_timed(lambda: _floor(case.item.frame, *planes)))
        with _clocks(steps):
            _measure(case)
        for name, (run, _) in PEERS.items():
            theirs[name].append(_laps(run, case.peer, references[name]))
    total, floor = (float(np.median(ours[key])) for key in ("total", "floor"))
    result: dict[str, Any] = {"total_ms": total, "floor_ms": floor}
    # A floor of a few ms is told by sums over many frames, not by one of them.
    result["ratio_floor"] = sum(ours["total"]) / sum(ours["floor"])
    ms = {name: float(np.median(times)) for name, times in steps.items() if times}
    ms["other"] = max(0.0, total - sum(ms.values()))
    result["steps_ms"] = {"ours": ms}
    for name in NAMES:
        whole = [sum(laps.values()) for laps in theirs.get(name, ())]
        result[f"{name}_ms"] = float(np.median(whole)) if whole else None
        result[f"ratio_{name}"] = float(np.median(whole)) / total if whole else None
        if whole:
            laps = theirs[name]
            result["steps_ms"][name] = {k: float(np.median([r[k] for r in laps])) for k in laps[0]}
    return result


def _measure(case: Case) -> None:
    measure_frame(case.item, case.stars, case.settings, trim_px=0)


def _show_cosmic_rays(case: Case) -> None:
    """What [calibration] cosmic_rays = true adds to the frame; it is off by default."""
    calibration = calibration_of(case.item.paths, EXPOSURE_S)
    exposure = expose(case.item.frame, calibration, Instrument(), trim_px=0)
    times = [_timed(lambda: mark_cosmic_rays(exposure, fwhm_px=FWHM_PX)) for _ in range(3)]
    print(f"{case.name}: cosmic_rays = true would add {min(times):.0f} ms")


def _timed(run: Callable[[], object]) -> float:
    return 1e3 * cpu_seconds(run)


def _laps(run: Callable[..., object], case: PeerCase, reference: Any) -> dict[str, float]:
    laps: dict[str, float] = {}
    last = time.thread_time()

    def lap(step: str) -> None:
        nonlocal last
        now = time.thread_time()
        laps[step], last = 1e3 * (now - last), now

    run(case, reference, lap)
    return laps


@contextmanager
def _clocks(steps: dict[str, list[float]]) -> Iterator[None]:
    """Every step of ours with a stopwatch around it; calls within one frame add up."""
    spent = dict.fromkeys(steps, 0.0)

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            result = function(*args, **options)
            spent[name] += 1e3 * (time.thread_time() - start)
            return result

        return run

    with ExitStack() as stack:
        for name, (module, function) in STEPS.items():
            stack.enter_context(
                patch.object(module, function, clocked(name, getattr(module, function)))
            )
        yield
    for name, ms in spent.items():
        steps[name].append(ms)


def _floor(
    frame: PlannedFrame, offset: NDArray[Any] | None, inverse_flat: NDArray[Any] | None
) -> NDArray[Any]:
    """The least that any way must do: bytes read, one pass over them."""
    raw = np.empty((frame.ny, frame.nx), dtype=np.uint16)
    with frame.file.open("rb", buffering=0) as file:
        file.seek(-(-raw.nbytes // 2880) * -2880, os.SEEK_END)
        file.readinto(raw.reshape(-1).view(np.uint8).data)
    nothing = np.zeros((1, frame.nx), dtype=np.float32)
    planes = (nothing if plane is None else plane for plane in (offset, inverse_flat))
    pixels: NDArray[Any] = _one_pass(raw, *planes)
    return pixels


@njit(nogil=True)
def _one_pass(raw: NDArray[Any], offset: NDArray[Any], inverse_flat: NDArray[Any]) -> NDArray[Any]:
    pixels = np.empty(raw.shape, dtype=np.float32)
    for y in range(raw.shape[0]):
        dark, response, row, source = (
            offset[y % len(offset)], inverse_flat[y % len(inverse_flat)], pixels[y], raw[y],
        )  # fmt: skip
        for x in range(len(row)):
            word = source[x]
            level = np.uint16(((word & 0xFF) << 8) | (word >> 8)) ^ np.uint16(0x8000)
            row[x] = (np.float32(level) - dark[x]) * response[x]
    return pixels


def _show(name: str, figures: dict[str, Any]) -> None:
    columns = ["ours", *(peer for peer in NAMES)]
    print(f"\n{name}: CPU ms" + "".join(f"{column:>11}" for column in columns))
    of_all = figures["steps_ms"]
    for step in dict.fromkeys(step for laps in of_all.values() for step in laps):
        cells = [of_all.get(column, {}).get(step) for column in columns]
        print(f"{step:>{len(name) + 8}}" + "".join(_cell(ms) for ms in cells))
    whole = [figures["total_ms"], *(figures[f"{peer}_ms"] for peer in NAMES)]
    print(f"{'whole':>{len(name) + 8}}" + "".join(_cell(ms) for ms in whole))
    ratios = [1.0, *(figures[f"ratio_{peer}"] for peer in NAMES)]
    print(f"{'over ours':>{len(name) + 8}}" + "".join(_cell(ratio) for ratio in ratios))
    print(f"ours over reading and one pass ({figures['floor_ms']:.2f} ms): "
          f"{figures['ratio_floor']:.1f}\n")  # fmt: skip
    missing = [peer for peer in NAMES if peer not in PEERS]
    if missing:
        print(f"not installed: {', '.join(missing)}; pip install -e .[bench]")


def _cell(value: float | None) -> str:
    return f"{'':>11}" if value is None else f"{value:11.2f}"


if __name__ == "__main__":
    begin_again_in_environment()
    sys.exit(main())
