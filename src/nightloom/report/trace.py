"""A run's trace summed up: where the time went, which frames and nodes are slow, who idles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nightloom.store.products import kind_of

MB = 1e6
MOST_FRAMES = 10


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A run in numbers; tables have a row a kind of task, a slow task, a node, a worker.

    seconds: from the first task's start to the end of the last. Seconds in the tables are wall
    time of the tasks, added up over workers.
    """

    seconds: float
    n_tasks: int
    n_frames: int
    n_workers: int
    idle: float  # share of the workers' time in which no task ran
    outcomes: dict[str, int]
    kinds: pd.DataFrame
    slowest: pd.DataFrame
    nodes: pd.DataFrame
    workers: pd.DataFrame

    def as_dict(self) -> dict[str, Any]:
        """For JSON; NaN, where nothing is known, is None."""
        tables = {
            name: getattr(self, name).replace({np.nan: None}).to_dict("records")
            for name in ("kinds", "slowest", "nodes", "workers")
        }
        names = ("seconds", "n_tasks", "n_frames", "n_workers", "idle", "outcomes")
        return {name: getattr(self, name) for name in names} | tables


def summed_up(trace: pd.DataFrame) -> TraceSummary:
    """Sum up a trace; its columns are those of `schema.trace.TaskRecord`, a row a task."""
    tasks = trace.assign(
        what=trace["product"].map(kind_of),
        queue_s=(trace["started_s"] - trace["queued_s"]).clip(lower=0),
        end_s=trace["started_s"] + trace["seconds"],
    )
    began = float(tasks["started_s"].min()) if len(tasks) else 0.0
    ended = float(tasks["end_s"].max()) if len(tasks) else 0.0
    workers = _workers(tasks, began, ended)
    spent = float(workers["busy_s"].sum())
    there = len(workers) * (ended - began)
    return TraceSummary(
        seconds=ended - began,
        n_tasks=len(tasks),
        n_frames=int(tasks.loc[_measuring(tasks), "n_frames"].sum()),
        n_workers=len(workers),
        idle=1 - spent / there if there > 0 else 0.0,
        outcomes={str(k): int(n) for k, n in tasks["outcome"].value_counts().items()},
        kinds=_kinds(tasks),
        slowest=_slowest(tasks),
        nodes=_nodes(tasks),
        workers=workers,
    )


def _measuring(tasks: pd.DataFrame) -> pd.Series:
    """Tasks whose frames count: a frame is measured once that is done."""
    return (tasks["what"] == "cube") & (tasks["kind"] == "step") & (tasks["outcome"] == "done")


def _sums(group: pd.DataFrame) -> dict[str, Any]:
    seconds = float(group["seconds"].sum())
    return {
        "tasks": len(group),
        "frames": int(group["n_frames"].sum()),
        "wall_s": seconds,
        "cpu_s": float(group["cpu_s"].sum()),
        "read_mb_s": float(group["bytes_read"].sum()) / MB / seconds if seconds > 0 else np.nan,
    }


def _lost(group: pd.DataFrame) -> dict[str, int]:
    return {name: int((group["outcome"] == name).sum()) for name in ("failed", "retried", "killed")}


def _kinds(tasks: pd.DataFrame) -> pd.DataFrame:
    """A row a kind of product and of task, the dearest first."""
    whole = float(tasks["seconds"].sum())
    rows = []
    for (what, kind), group in tasks.groupby(["what", "kind"]):
        row: dict[str, Any] = {"product": what, "task": kind} | _sums(group)
        row["share"] = row["wall_s"] / whole if whole > 0 else np.nan
        row["queue_s"] = float(group["queue_s"].median())
        row["peak_mb"] = float(group["peak_bytes"].max()) / MB
        rows.append(row | _lost(group))
    names = ["product", "task", "tasks", "frames", "wall_s", "share", "cpu_s", "read_mb_s",
             "queue_s", "peak_mb", "failed", "retried", "killed"]  # fmt: skip
    table = pd.DataFrame(rows, columns=names)
    return table.sort_values("wall_s", ascending=False, kind="stable", ignore_index=True)


def _slowest(tasks: pd.DataFrame) -> pd.DataFrame:
    """The tasks whose frames took longest, a frame."""
    steps = tasks[(tasks["kind"] == "step") & (tasks["n_frames"] > 0)]
    steps = steps.assign(frame_s=steps["seconds"] / steps["n_frames"])
    steps = steps.sort_values("frame_s", ascending=False, kind="stable").head(MOST_FRAMES)
    names = ["product", "first_frame", "n_frames", "frame_s", "outcome", "worker", "host"]
    return steps[names].reset_index(drop=True)


def _nodes(tasks: pd.DataFrame) -> pd.DataFrame:
    """A row a host, the slowest first: `slowness` is its time over what others need for the same.

    Compared within a kind of product and task, so that a node is not slow for having had the
    dear ones.
    """
    n = tasks["n_frames"].clip(lower=1)
    each = tasks["seconds"] / n
    usual = each.groupby([tasks["what"], tasks["kind"]]).transform("median")
    tasks = tasks.assign(usual_s=usual * n)
    rows = []
    for host, group in tasks.groupby("host"):
        sums = _sums(group)
        expected = float(group["usual_s"].sum())
        slowness = sums["wall_s"] / expected if expected > 0 else np.nan
        row = {"host": host, "workers": int(group["worker"].nunique()), "slowness": slowness}
        rows.append(row | sums | _lost(group))
    names = ["host", "workers", "slowness", "tasks", "frames", "wall_s", "cpu_s", "read_mb_s",
             "failed", "retried", "killed"]  # fmt: skip
    table = pd.DataFrame(rows, columns=names)
    return table.sort_values("slowness", ascending=False, kind="stable", ignore_index=True)


def _workers(tasks: pd.DataFrame, began: float, ended: float) -> pd.DataFrame:
    """A row a worker: its busy time, and the share of the run in which it had no task."""
    rows = []
    for (host, worker), group in tasks.groupby(["host", "worker"]):
        # Tasks of one worker that overlap (a driver's threads) are not counted twice.
        busy = _covered(group["started_s"].to_numpy(float), group["end_s"].to_numpy(float))
        idle = 1 - busy / (ended - began) if ended > began else 0.0
        rows.append(
            {"worker": worker, "host": host, "tasks": len(group), "busy_s": busy, "idle": idle}
        )
    table = pd.DataFrame(rows, columns=["worker", "host", "tasks", "busy_s", "idle"])
    return table.sort_values("idle", ascending=False, kind="stable", ignore_index=True)


def _covered(start: np.ndarray[Any, Any], end: np.ndarray[Any, Any]) -> float:
    """Length of the union of some intervals."""
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    before = np.concatenate([[-np.inf], end[:-1]])
    return float(np.maximum(0.0, end - np.maximum(start, before)).sum())
