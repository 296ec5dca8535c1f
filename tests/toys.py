"""A product small enough to make anywhere: numbers in, their squares in a Zarr store out."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nightloom.engine.recipe import Made, Recipe
from nightloom.errors import FrameError, ProductError
from nightloom.schema.cube import Variable
from nightloom.store.encodings import create_store, seal, write_rows

VARIABLES = (Variable("value", ("time",), "float64", "", "a square"),)
SHARD = 8


@dataclass(frozen=True, slots=True)
class Job:
    n: int
    fail: str = ""


def begin(job: Job, work: Path) -> None:
    create_store(work / "cube.zarr", VARIABLES, {"time": job.n}, attributes={}, time_shard=SHARD)


def step(job: Job, items: tuple[Any, ...]) -> list[float]:
    if job.fail == "kill" and 5 in items:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.fail == "step" and 5 in items:
        raise ProductError(where="toy", why="five is not liked")
    if job.fail.startswith(("twice", "always")) and 5 in items:
        word, folder = job.fail.split(" ", 1)
        tries = Path(folder) / f"tries-{word}"
        with tries.open("ab") as file:
            file.write(b"x")
        if word == "always" or tries.stat().st_size <= 2:
            raise OSError(errno.EIO, "the disk does not answer", folder)
    if job.fail.startswith("late ") and 19 in items:
        _await(Path(job.fail.split(" ", 1)[1]) / "packing")
        raise ProductError(where="toy", why="nineteen is not liked")
    if job.fail == "bug" and 5 in items:
        raise KeyError("five")
    return [float(item) ** 2 for item in items]


def die(chunk: list[str]) -> None:
    """A chunk that no worker survives."""
    os._exit(1)


def lost(job: Job, item: Any, reason: str) -> float:
    return float("nan")


def _await(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def pack(job: Job, work: Path, start: int, rows: list[float]) -> int:
    if job.fail.startswith("late "):
        (Path(job.fail.split(" ", 1)[1]) / "packing").touch()
        time.sleep(1)
        # As Zarr does, which makes the folders that it needs.
        (work / "cube.zarr/value/c").mkdir(parents=True, exist_ok=True)
    write_rows(work / "cube.zarr", start, {"value": np.array(rows)})
    return len(rows)


def finish(job: Job, work: Path, results: list[int]) -> Made:
    if sum(results) != job.n:
        raise FrameError(where="toy", why=f"{sum(results)} rows of {job.n}")
    seal(work / "cube.zarr")
    return Made()


def recipe(name: str, n: int = 20, fail: str = "", chunk: int = 3) -> Recipe:
    return Recipe(
        product=f"cube/{name}",
        inputs=(("n", str(n)),),
        settings=None,
        version=1,
        job=Job(n, fail),
        begin=begin,
        step=step,
        pack=pack,
        finish=finish,
        lost=lost,
        items=tuple(range(n)),
        shard_items=SHARD,
        chunk_items=chunk,
    )
