"""Times the median of 16 and of 64 raw frames of 2048 x 2048, and the memory that it takes.

The read is what nobody can spare: the bytes of every row into a buffer that is there already.
Ours reads row sections and must be numpy's median to the bit; "whole" is the bias master as the
product is made: median, clipped noise, variance and bad pixels, written as Zarr. numpy and
ccdproc (of the optional group `bench`: pip install -e .[bench]) are given a quarter of the rows,
their time is scaled. All run in turn in one process and one thread, CPU time; the memory is the
resident peak of a fresh process above what it was before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from bench_timing import ENVIRONMENT, add_options, cpu_seconds, finish
from nightloom.config import CalibrationSection
from nightloom.image.combine import median_combine
from nightloom.plan.calibrations import Choice, Kit
from nightloom.plan.recipes import PlannedFrame, PlannedMaster
from nightloom.reduce.masters import make_master, master_recipe
from nightloom.reduce.sections import located, rows_at_once, sections

QUARTER = 4
# Most of ours over the read, least of numpy's time over ours, most MiB.
GATES = {
    16: {"ratio_read": 3.0, "ratio_numpy": 25.0, "peak_mib": 128.0},
    64: {"ratio_read": 5.0, "ratio_numpy": 25.0, "peak_mib": 128.0},
}
AT_MOST = frozenset({"ratio_read", "peak_mib"})


def main(arguments: list[str] | None = None) -> int:
    """Write frames, time each way in turn, print; 1 below the gates."""
    options = _options(arguments)
    if options.one:
        print(json.dumps(_peak_mib(options.one, _files(options.folder, options.frames[0]))))
        return 0
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), max(options.frames), options.size)
        for n in options.frames:
            found[n] = _compare(Path(folder), n, options)
            _show(n, found[n])
    return finish(found, GATES, options, at_most=AT_MOST)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, rounds=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64], help="how many")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _write(folder: Path, n: int, size: int) -> None:
    rng = np.random.default_rng(5)
    for k in range(n):
        noise = rng.standard_normal((size, size), dtype=np.float32)
        fits.writeto(folder / f"{k:03d}.fits", (1000.5 + 8 * noise).astype(np.uint16))


def _files(folder: Path, n: int) -> list[Path]:
    return sorted(folder.glob("*.fits"))[:n]


def read(files: list[Path]) -> None:
    """The floor: the bytes of every section of all frames into one buffer, nothing done with it."""
    ny, nx = fits.getdata(files[0]).shape
    n_rows = rows_at_once(len(files), ny, 2 * nx)
    buffer = np.empty((len(files), n_rows * nx), np.uint16)
    for start in range(0, ny, n_rows):
        for file, place in zip(files, buffer, strict=True):
            with file.open("rb", buffering=0) as stream:
                stream.seek(2880 + start * 2 * nx)
                stream.readinto(place.data)


def ours(files: list[Path]) -> NDArray[Any]:
    frames = _frames(files)
    sources, _ = located(frames, files[0].parent)
    level = np.empty((frames[0].ny, frames[0].nx), np.float32)
    for part in sections(sources):
        level[part.rows] = median_combine(part.stored, zero=part.zero)
    return level


def whole(files: list[Path]) -> None:
    """The product: `master.zarr` with level, noise, variance and bad pixels."""
    frames = _frames(files)
    kit = Kit("master/bias/x", "bias", "cam", frames[0].ny, frames[0].nx, 1, "", "2024-01-01",
              0.0, "", -20.0, ())  # fmt: skip
    root = files[0].parent
    recipe = master_recipe(root, PlannedMaster(kit, frames, Choice()), CalibrationSection())
    work = root / "work"
    work.mkdir()
    try:
        make_master(recipe.job, work, [])
    finally:
        shutil.rmtree(work)


def _frames(files: list[Path]) -> tuple[PlannedFrame, ...]:
    ny, nx = fits.getdata(files[0]).shape
    nan = float("nan")
    return tuple(
        PlannedFrame(
            root=file.parent, path=file.name, hdu=0, size_bytes=file.stat().st_size, digest="",
            instrument="cam", filter="", ny=ny, nx=nx, jd_utc=nan, exposure_s=0.0,
            gain_e_per_adu=nan, read_noise_e=nan, saturation_adu=nan, ra_deg=nan, dec_deg=nan,
            pixel_scale_arcsec=nan, site_lat_deg=nan,
            site_lon_deg=nan, site_height_m=nan, time_suspect=False,
        )
        for file in files
    )  # fmt: skip


def with_numpy(files: list[Path]) -> NDArray[Any]:
    """A quarter of the rows."""
    stack = np.stack([_quarter(file) for file in files])
    return np.asarray(np.median(stack, axis=0)).astype(np.float32)


def with_ccdproc(files: list[Path]) -> NDArray[Any]:
    """A quarter of the rows."""
    from astropy.nddata import CCDData
    from ccdproc import Combiner

    frames = [CCDData(_quarter(file), unit="adu") for file in files]
    return np.asarray(Combiner(frames).median_combine().data)


def _quarter(file: Path) -> NDArray[Any]:
    with fits.open(file) as hdus:
        return np.asarray(hdus[0].data[: len(hdus[0].data) // QUARTER])


WAYS: dict[str, Callable[[list[Path]], Any]] = {
    "read": read,
    "ours": ours,
    "whole": whole,
    "numpy": with_numpy,
    "ccdproc": with_ccdproc,
}


def _peak_mib(way: str, files: list[Path]) -> float:
    """Resident peak of one way above what it was, compiled and imported before."""
    small = files[0].parent / "small"
    small.mkdir()
    _write(small, len(files), 64)
    WAYS[way](_files(small, len(files)))
    shutil.rmtree(small)
    before = _resident_peak_mib()
    WAYS[way](files)
    return _resident_peak_mib() - before


def _resident_peak_mib() -> float:
    """By the kernel's VmHWM: ru_maxrss is that of the process that started this one, if larger."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _compare(folder: Path, n: int, options: argparse.Namespace) -> dict[str, Any]:
    files = _files(folder, n)
    ways = [way for way in WAYS if way != "ccdproc" or find_spec(way) is not None]
    times: dict[str, list[float]] = {way: [] for way in ways}
    exact = with_numpy(files)  # also a first run of what is imported lazily
    if not np.array_equal(ours(files)[: len(exact)], exact):
        raise SystemExit("ours is not numpy's median to the bit")
    whole(files)
    for k in range(options.rounds):
        for way in ways:
            if k and way in ("numpy", "ccdproc"):
                continue  # they take long, and a tenth more or less does not matter there
            for _ in range(5 if way in ("read", "ours") else 1):
                times[way].append(cpu_seconds(partial(WAYS[way], files)))
    result: dict[str, Any] = {}
    for way in WAYS:
        scale = QUARTER if way in ("numpy", "ccdproc") else 1
        result[f"{way}_s"] = scale * float(np.median(times[way])) if way in times else None
    for way in ("numpy", "ccdproc"):
        seconds = result[f"{way}_s"]
        result[f"ratio_{way}"] = None if seconds is None else seconds / result["ours_s"]
    result["ratio_read"] = result["ours_s"] / result["read_s"]
    result["ratio_read_whole"] = result["whole_s"] / result["read_s"]
    result["peak_mib"] = _peak_alone("ours", folder, n)
    result["peak_whole_mib"] = _peak_alone("whole", folder, n)
    return result


def _peak_alone(way: str, folder: Path, n: int) -> float:
    command = [
        sys.executable, "-W", "ignore", __file__, "--one", way, "--folder", str(folder),
        "--frames", str(n),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT
    )
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr.strip()[-400:]}")
    return float(json.loads(done.stdout))


def _show(n: int, figures: dict[str, Any]) -> None:
    print(f"median of {n} frames, bit-identical to numpy's:")
    for way in WAYS:
        seconds, ratio = figures[f"{way}_s"], figures.get(f"ratio_{way}")
        if seconds is None:
            print(f"  {way:8}  not installed; pip install -e .[bench]")
        elif way in ("read", "ours", "whole"):
            print(f"  {way:8} {seconds:8.3f} s  {seconds / figures['read_s']:6.2f} times the read")
        else:
            print(f"  {way:8} {seconds:8.3f} s  {ratio:6.1f} times ours")
    peak, product = figures["peak_mib"], figures["peak_whole_mib"]
    print(f"  resident peak of ours {peak:.0f} MiB, of the whole product {product:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
