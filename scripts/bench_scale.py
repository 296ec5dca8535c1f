"""Archives of 10^3 to 10^6 frames through the true scan, planner, driver and engine.

    python scripts/bench_scale.py --scratch DIR [--frames 1000,1000000] [--workers 1,2] [--json F]

Frames are hard links of one file a night (5,760 bytes), so a stat costs what it costs; the rows of
the first frame table are written straight, as if their headers had been read. Nothing is measured:
each frame costs its worker a stated time of CPU. The scheduler is a process of its own, so its
memory and CPU are its own. `--quick` is a test that the script still runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client

from nightloom import pipeline, stages
from nightloom.config import Config, load_config
from nightloom.engine.cluster import SERIAL, Engine
from nightloom.engine.recipe import Event, ItemsDone, Made, Outline, Recipe, written
from nightloom.engine.workers import environment
from nightloom.report.pages import page_recipes
from nightloom.schema.cube import STARS, TARGETS, Variable
from nightloom.schema.frames import COLUMNS
from nightloom.store.encodings import write_store
from nightloom.store.products import kind_of
from nightloom.store.provenance import provenance
from nightloom.store.tables import write_table

FRAMES_A_NIGHT = 250
FRAME_BYTES, MTIME_NS = 5760, 10**18
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Job:
    """What a faked product is made of: CPU seconds an item, and what its readers ask of it."""

    kind: str
    spin_s: float
    attributes: dict[str, Any]


def write_files(folder: Path, n_frames: int) -> None:
    """The archive's files: nights of 250 frames."""
    night: Path | None = None
    for path in names_of(n_frames):
        file = folder / path
        if file.parent != night:
            night, first = file.parent, file
            night.mkdir(parents=True)
            file.write_bytes(b" " * FRAME_BYTES)
            os.utime(file, ns=(MTIME_NS, MTIME_NS))
        else:
            os.link(first, file)


def names_of(n_frames: int) -> list[str]:
    return [
        f"{date(2010, 1, 1) + timedelta(k // FRAMES_A_NIGHT)}/f{k % FRAMES_A_NIGHT:05d}.fits"
        for k in range(n_frames)
    ]


def frame_table(n_frames: int, root: Path) -> pd.DataFrame:
    """Rows as a scan of these files' headers would give them."""
    k = np.arange(n_frames)
    names = names_of(n_frames)
    values: dict[str, Any] = {
        "root": str(root), "path": names, "size_bytes": FRAME_BYTES, "mtime_ns": MTIME_NS,
        "digest": [f"{i:020x}" for i in range(n_frames)], "instrument": "camera",
        "image_type": "science", "object": "Field", "filter": "R", "exposure_s": 60.0,
        "jd_utc": 2455197.4 + k // FRAMES_A_NIGHT + (k % FRAMES_A_NIGHT) * 1e-3,
        "ra_deg": 120.0, "dec_deg": 20.0, "ny": 4, "nx": 4, "binning": 1, "gain_e_per_adu": 1.5,
        "read_noise_e": 6.0, "ccd_temp_c": -20.0, "pixel_scale_arcsec": 300.0,
        "saturation_adu": 6e4, "site_lat_deg": 28.0, "site_lon_deg": -16.0,
        "site_height_m": 2000.0, "night": [name.split("/")[0] for name in names],
    }  # fmt: skip
    index = pd.RangeIndex(n_frames)
    return pd.DataFrame(
        {
            column.name: pd.Series(
                values.get(column.name, "" if column.dtype == "str" else 0),
                index=index,
                dtype=pd.api.types.pandas_dtype(column.dtype),
            )
            for column in COLUMNS
        }
    )


def make_archive(folder: Path, n_frames: int) -> Path:
    """Files, configuration and frame table; returns the configuration."""
    write_files(folder / "frames", n_frames)
    path = folder / "nightloom.toml"
    path.write_text('[archive]\nframes = ["frames"]\n[calibration]\nlights_map = false\n')
    config = load_config(path)
    table = frame_table(n_frames, folder / "frames")
    table.attrs["rules"] = pipeline.rules_of(config)
    write_table(config.products_path / pipeline.FRAMES, table)
    return path


def spin(job: Job, items: tuple[Any, ...]) -> list[int]:
    """Work of a known cost: CPU of this thread, for what the worker does besides is lost."""
    end = time.thread_time() + job.spin_s * len(items)
    while time.thread_time() < end:
        pass
    return [0] * len(items)


def finish(job: Job, work: Path, _: list[Any]) -> Made:
    """A product with what others read of it, and nothing else."""
    if job.kind == "plate":
        return Made(outcome="empty", reason="nothing to solve")
    if job.kind == "report":
        (work / "report.html").write_text("<html></html>")
        return Made()
    if job.kind == "stars":
        text = np.array([], dtype=object)
        arrays: dict[str, Any] = {
            v.name: text if v.dtype == "str" else np.zeros(0 if v in TARGETS else 5, v.dtype)
            for v in (*STARS, *TARGETS)
        }
        write_store(work / "stars.zarr", (*STARS, *TARGETS), arrays, attributes=job.attributes)
        return Made()
    value = Variable("value", ("time",), "float64", "", "nothing")
    store = work / f"{job.kind}.zarr"
    write_store(store, [value], {"value": np.zeros(1)}, attributes=job.attributes)
    return Made()


def faked(recipes: Any, spin_s: float) -> Iterator[Recipe | Outline]:
    """Recipes with their true inputs, items and fingerprints, and work of a known cost."""
    for recipe in recipes:
        if isinstance(recipe, Outline):  # written only where it is due, as in a true run
            yield replace(recipe, write=partial(_faked, recipe, spin_s))
        else:
            yield _faked(recipe, spin_s)


def _faked(outline: Recipe | Outline, spin_s: float) -> Recipe:
    recipe = written(outline)
    attributes = provenance(
        recipe.product, fingerprint=recipe.fingerprint, inputs=recipe.inputs,
        settings=recipe.settings, algorithm=recipe.version,
    )  # fmt: skip
    if kind_of(recipe.product) == "cube":  # thousands of names a night are no part of this
        attributes["inputs"] = []
    attributes |= {"positions": "p", "fwhm_px": 3.0, "exposure_s": 60.0, "grid_of": ""}
    job = Job(kind_of(recipe.product), spin_s, attributes)
    step = spin if recipe.items else None
    return replace(recipe, job=job, begin=None, step=step, pack=None, lost=None, finish=finish)


def make_all(run: pipeline.Run, config: Config, spin_s: float) -> None:
    """Plan, and every product in its order."""
    root, plan = run.root, pipeline.plan(run)
    field = plan.fields[0]
    run.make(faked([stages.reference_of(root, plan, config, field)], spin_s))
    run.make(faked(stages.plate_recipes(root, plan, config), spin_s))
    run.make(faked(stages.stars_recipes(root, plan, config), spin_s))
    run.make(faked(stages.cube_recipes(root, plan, config), spin_s))
    run.make(faked(stages.field_recipes(root, plan), spin_s))
    run.make(faked(stages.ensemble_recipes(root, plan, config), spin_s))
    run.make(faked(page_recipes(root, stages.field_recipes(root, plan)), spin_s))
    pipeline.keep_expected(run, plan)


def first_run(path: Path, scheduler: str, pids: list[int], spin_s: float) -> dict[str, float]:
    """A run that makes all; seconds, CPU and memory of the driver, CPU of the others."""
    config = load_config(path)
    first: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, ItemsDone) and not first:
            first.append(time.perf_counter())

    began, cpu, others = time.perf_counter(), time.process_time(), sum(map(cpu_s, pids))
    before = rss_bytes(os.getpid())
    with Engine(scheduler) as engine, pipeline.Run(config, engine, listen) as run:
        make_all(run, config, spin_s)
    return {
        "seconds": time.perf_counter() - began,
        "first_frame_s": first[0] - began,
        "driver_cpu_s": time.process_time() - cpu,
        "cluster_cpu_s": sum(map(cpu_s, pids)) - others,
        "driver_peak_bytes": peak_bytes() - before,
        "made": run.outcome.n_made,
    }


def second_run(path: Path) -> dict[str, float]:
    """All of `nightloom run` with nothing to do, in a fresh process."""
    config = load_config(path)
    before, began, cpu = rss_bytes(os.getpid()), time.perf_counter(), time.process_time()
    times: dict[str, float] = {}

    def mark(name: str, since: float) -> float:
        times[name] = time.perf_counter() - since
        return time.perf_counter()

    with Engine(SERIAL) as engine, pipeline.Run(config, engine, lambda _: None) as run:
        n_read = pipeline.scan(run).n_read
        now = mark("scan_s", began)
        plan = pipeline.plan(run)
        now = mark("plan_s", now)
        pipeline.reduce(run, plan)
        pipeline.gather(run, plan)
        pipeline.report(run, plan)
        mark("look_s", now)
    if run.outcome.n_made or run.has_news or n_read:
        raise SystemExit(f"the second run made {run.outcome}, read {n_read}")
    return times | {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "driver_peak_bytes": peak_bytes() - before,
        "kept": run.outcome.n_kept,
    }


@contextmanager
def cluster(folder: Path, n_workers: int) -> Iterator[tuple[str, int, list[int]]]:
    """A scheduler and workers as processes; the scheduler's file, its pid, the workers' pids."""
    folder.mkdir(parents=True)
    file = folder / "scheduler.json"
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | environment() | {"PYTHONPATH": path}
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, "env": env}
    server = [*dask, "scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1",
              "--port", "0", "--dashboard-address", "127.0.0.1:0"]  # fmt: skip
    worker = [*dask, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny",
              "--no-dashboard"]  # fmt: skip
    processes = [subprocess.Popen(server, **quiet)]
    try:
        while not file.exists():
            time.sleep(0.1)
        processes += [subprocess.Popen(worker, **quiet) for _ in range(n_workers)]
        with Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(n_workers)
            client.run(import_module, "nightloom.pipeline")  # not to be counted as lost
        yield str(file), processes[0].pid, [process.pid for process in processes[1:]]
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def part(script_arguments: list[str]) -> dict[str, float]:
    """A part of this script in a process of its own, whose memory is only its own."""
    command = [sys.executable, __file__, *script_arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measured(scratch: Path, n_frames: int, n_workers: int, spin_s: float) -> dict[str, float]:
    """One archive made, run, and run again."""
    folder = Path(tempfile.mkdtemp(prefix=f"scale-{n_frames}-", dir=scratch))
    try:
        path = make_archive(folder, n_frames)
        with cluster(folder / "dask", n_workers) as (file, scheduler, workers):
            pids = ",".join(map(str, [scheduler, *workers]))
            row = part(["--part", "first", str(path), file, pids, str(spin_s)])
            row["scheduler_peak_bytes"] = peak_of(scheduler)
        again = part(["--part", "second", str(path), "", "", "0"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    work_s = n_frames * spin_s
    row |= {f"again_{name}": value for name, value in again.items()}
    row |= {"frames": n_frames, "workers": n_workers, "spin_s": spin_s}
    row["frames_per_s"] = n_frames / row["seconds"]
    row["lost_cpu"] = (
        (row["driver_cpu_s"] + row["cluster_cpu_s"] - work_s) / work_s if work_s else 0
    )
    return row


def table(rows: list[dict[str, float]]) -> str:
    """The figures as Markdown."""
    head = ["frames", "workers", "CPU a frame, s", "run, s", "frames/s", "first frame, s",
            "lost CPU, %", "scheduler, MB", "driver, MB", "B a frame", "again, s", "scan, s",
            "plan, s", "look, s", "again B a frame"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    for r in rows:
        lost = f"{100 * r['lost_cpu']:.1f}" if r["spin_s"] else "-"
        cells = [
            f"{r['frames']:.0f}", f"{r['workers']:.0f}", f"{r['spin_s']:g}", f"{r['seconds']:.1f}",
            f"{r['frames_per_s']:.0f}", f"{r['first_frame_s']:.1f}", lost,
            f"{r['scheduler_peak_bytes'] / 1e6:.0f}", f"{r['driver_peak_bytes'] / 1e6:.0f}",
            f"{r['driver_peak_bytes'] / r['frames']:.0f}", f"{r['again_seconds']:.1f}",
            f"{r['again_scan_s']:.1f}", f"{r['again_plan_s']:.1f}", f"{r['again_look_s']:.1f}",
            f"{r['again_driver_peak_bytes'] / r['frames']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_s(pid: int) -> float:
    """CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def peak_of(pid: int) -> int:
    """High-water mark of a process's memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def peak_bytes() -> int:
    return peak_of(os.getpid())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--frames", default="1000,10000,100000,1000000")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--spin", type=float, default=0.0, help="CPU seconds a frame costs")
    parser.add_argument("--quick", action="store_true", help="one small archive, one worker")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        name, path, file, pids, spin_s = given.part
        figures = (
            first_run(Path(path), file, [int(pid) for pid in pids.split(",")], float(spin_s))
            if name == "first"
            else second_run(Path(path))
        )
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    frames, workers = ("500", "1") if given.quick else (given.frames, given.workers)
    rows = []
    for n_frames in map(int, frames.split(",")):
        for n_workers in map(int, workers.split(",")):
            rows.append(measured(given.scratch, n_frames, n_workers, given.spin))
            sys.stderr.write(f"{rows[-1]}\n")
    sys.stdout.write(table(rows) + "\n")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    # Its functions must have a name that workers can import.
    import bench_scale

    bench_scale.main()
