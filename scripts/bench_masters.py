"""Times the median of 16 and of 64 raw frames of 2048 x 2048, and the memory that it takes.

Ours reads row sections and must be numpy's median to the bit. numpy and ccdproc (of the optional
group `bench`: pip install -e .[bench]) are given a quarter of the rows, their time is scaled.
Each runs in a process of its own, in one thread; the memory is its peak above what it was before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from bench_timing import ENVIRONMENT, add_options, cpu_seconds, finish
from nightloom.frames.fits import read_pixels
from nightloom.image.combine import median_combine
from nightloom.reduce.masters import SECTION_BYTES

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
        print(json.dumps(_alone(options.one, options.folder, options.frames[0], options.rounds)))
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


def _sections(files: list[Path]) -> list[slice]:
    ny, nx = fits.getdata(files[0]).shape
    rows = max(1, SECTION_BYTES // (2 * nx * len(files)))
    return [slice(a, min(a + rows, ny)) for a in range(0, ny, rows)]


def read(files: list[Path]) -> None:
    """The floor: every section read, nothing done with it."""
    for rows in _sections(files):
        for file in files:
            read_pixels(file, 0, rows=rows)


def ours(files: list[Path]) -> NDArray[Any]:
    sections = _sections(files)
    level = np.empty(fits.getdata(files[0]).shape, np.float32)
    for rows in sections:
        first = read_pixels(files[0], 0, rows=rows)
        stack = np.empty((len(files), *first.shape), first.dtype)
        for k, file in enumerate(files):
            stack[k] = read_pixels(file, 0, rows=rows)
        level[rows] = median_combine(stack)
    return level


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
    "numpy": with_numpy,
    "ccdproc": with_ccdproc,
}


def _alone(way: str, folder: Path, n: int, rounds: int) -> dict[str, float]:
    """CPU seconds and peak MiB of one way, in this process; compiled and imported before."""
    files = _files(folder, n)
    small = np.zeros((n, 2, 64), np.uint16)
    median_combine(small)
    fits.getdata(files[0])
    if way == "ccdproc":
        import ccdproc  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: list[float] = []
    made: deque[Any] = deque(maxlen=1)
    for _ in range(rounds if way in ("read", "ours") else 1):
        times.append(cpu_seconds(lambda: made.append(WAYS[way](files))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "ours":
        stack = np.stack([_quarter(file) for file in files])
        exact = np.median(stack, axis=0).astype(np.float32)
        if not np.array_equal(made[-1][: len(exact)], exact):
            raise SystemExit("ours is not numpy's median to the bit")
    return {"seconds": float(np.median(times)), "peak_mib": (peak - before) / 1024}


def _compare(folder: Path, n: int, options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for way in WAYS:
        if find_spec(way) is None and way == "ccdproc":
            result["ccdproc_s"] = result["ratio_ccdproc"] = None
            continue
        command = [
            sys.executable, "-W", "ignore", __file__, "--one", way, "--folder", str(folder),
            "--frames", str(n), "--rounds", str(options.rounds),
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT
        )
        if done.returncode:
            raise SystemExit(f"{way}: {done.stderr.strip()[-400:]}")
        alone = json.loads(done.stdout)
        scale = QUARTER if way in ("numpy", "ccdproc") else 1
        result[f"{way}_s"] = scale * alone["seconds"]
        if way == "ours":
            result["peak_mib"] = alone["peak_mib"]
        if scale > 1:
            result[f"ratio_{way}"] = result[f"{way}_s"] / result["ours_s"]
    result["ratio_read"] = result["ours_s"] / result["read_s"]
    return result


def _show(n: int, figures: dict[str, Any]) -> None:
    print(f"median of {n} frames, bit-identical to numpy's:")
    for way in WAYS:
        seconds, ratio = figures[f"{way}_s"], figures.get(f"ratio_{way}")
        if seconds is None:
            print(f"  {way:8}  not installed; pip install -e .[bench]")
        elif way in ("read", "ours"):
            print(f"  {way:8} {seconds:8.3f} s")
        else:
            print(f"  {way:8} {seconds:8.3f} s  {ratio:6.1f} times ours")
    print(f"  ours over the read {figures['ratio_read']:.2f}, peak {figures['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
