"""A run in some other process, watched in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nightloom.cli import show
from nightloom.config import Config
from nightloom.monitor import read_run, state_on_disk
from nightloom.pipeline import expected_now
from nightloom.store.ledger import STATES

EVERY_S = 1.0
MOST_RUNNING, MOST_TROUBLED = 12, 8


def watch(config: Config) -> None:
    """Draw the run that goes on until it ends; on a pipe a line now and then.

    Where none goes on, what the products say is shown once.
    """
    root = config.products_path
    state = read_run(root)
    if state is None:
        show.line(f"no run goes on in {root}")
    elif show.out.is_terminal:
        _live(root, state)
    else:
        _lines(root, state)
    show.out.print(drawing(state_on_disk(root, expected_now(config))))


def _live(root: Path, state: dict[str, Any]) -> None:
    with Live(drawing(state), console=show.out, auto_refresh=False, transient=True) as live:
        _follow(root, lambda new: live.update(drawing(new), refresh=True))


def _lines(root: Path, state: dict[str, Any]) -> None:
    said = 0.0

    def say(new: dict[str, Any]) -> None:
        nonlocal said
        if time.monotonic() - said >= show.PIPE_EVERY_S:
            said = time.monotonic()
            show.line(in_a_line(new))

    say(state)
    _follow(root, say)


def _follow(root: Path, tell: Callable[[dict[str, Any]], None]) -> None:
    while (state := read_run(root)) is not None:
        tell(state)
        time.sleep(EVERY_S)


def in_a_line(state: dict[str, Any]) -> str:
    """The state in one line."""
    if "products" not in state:
        return "scanning and planning"
    nights, frames = state["nights"], state["frames"]
    return (
        f"{nights['done']} of {nights['total']} nights, {frames['measured']} frames measured, "
        f"{frames['quarantined']} quarantined, {_rate(state)}, {_left(state)} left"
    )


def drawing(state: dict[str, Any]) -> RenderableType:
    """The state for a terminal: kinds with bars, what runs, what is troubled."""
    lead = Text()
    if state.get("dashboard"):
        lead.append(f"{state['dashboard'].rsplit('/', 1)[0]}/nightloom\n", style="dim")
    lead.append(in_a_line(state))
    if "products" not in state:
        return lead
    parts: list[RenderableType] = [lead, _kinds(state["products"])]
    if state["running"]:
        parts.append(_running(state["running"]))
    if state["troubled"]:
        parts.append(_troubled(state["troubled"]))
    return Group(*parts)


def _kinds(products: dict[str, dict[str, int]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    there = [state for state in STATES if any(row.get(state) for row in products.values())]
    shown.add_column("kind")
    shown.add_column("")
    for state in there:
        shown.add_column(state, justify="right")
    for kind, row in products.items():
        ended = row.get("done", 0) + row.get("empty", 0)
        bar = ProgressBar(total=max(1, sum(row.values())), completed=ended, width=30)
        shown.add_row(kind, bar, *(str(row.get(state, 0)) for state in there))
    return shown


def _running(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    shown.add_column("running", overflow="fold")
    shown.add_column("frames", justify="right")
    shown.add_column("seconds", justify="right")
    for row in rows[:MOST_RUNNING]:
        frames = f"{row['frames_done']} of {row['frames']}" if row["frames"] else ""
        shown.add_row(Text(row["product"]), frames, f"{row['seconds']:.0f}")
    if len(rows) > MOST_RUNNING:
        shown.add_row(f"and {len(rows) - MOST_RUNNING} more", "", "")
    return shown


def _troubled(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    for name in ("state", "product", "why"):
        shown.add_column(name, overflow="fold")
    for row in rows[:MOST_TROUBLED]:
        more = f" and {row['n'] - 1} more" if row["n"] > 1 else ""
        shown.add_row(row["state"], Text(row["product"] + more), Text(row["reason"]))
    if len(rows) > MOST_TROUBLED:
        shown.add_row("", f"and {len(rows) - MOST_TROUBLED} more", "nightloom status")
    return shown


def _rate(state: dict[str, Any]) -> str:
    rate = state["frames_per_s"]
    return "rate unknown" if rate is None else f"{rate:.1f} frames/s"


def _left(state: dict[str, Any]) -> str:
    left = state["left_s"]
    if left is None:
        return "unknown time"
    minutes, seconds = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
