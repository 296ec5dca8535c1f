"""Answers as text or JSON; events as progress."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from nightloom.engine.recipe import Event, Failed, Finished, ItemsDone, Started
from nightloom.pipeline import Outcome
from nightloom.store.products import kind_of

PIPE_EVERY_S = 10.0

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """One line on standard output."""
    out.print(text, markup=False)


def as_json(value: Any) -> None:
    """A value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def frame_as_json(table: pd.DataFrame) -> None:
    """A table as JSON: a list of rows; NaN is null."""
    sys.stdout.write(table.to_json(orient="records", indent=1) + "\n")


def table(rows: pd.DataFrame, *, title: str = "", columns: Sequence[str] = ()) -> None:
    """A table for people."""
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    names = list(columns) or list(rows.columns)
    for name in names:
        numeric = pd.api.types.is_numeric_dtype(rows[name])
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows[names].itertuples(index=False):
        shown.add_row(*(_cell(value) for value in row))
    out.print(shown)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return str(value).replace("[", r"\[")


def dashboard(link: str) -> str:
    """Where to watch a run, and the ssh tunnel to it where this is no desktop."""
    where = urlsplit(link)
    host = where.hostname or "localhost"
    if "SSH_CONNECTION" not in os.environ and host in ("127.0.0.1", "localhost", "::1"):
        return f"dashboard: {link}"
    login = f"{getpass.getuser()}@{socket.gethostname()}"
    return (
        f"dashboard: {link} (from your own computer: ssh -N -L {where.port}:{host}:{where.port} "
        f"{login}, then http://localhost:{where.port}{where.path})"
    )


class Watch:
    """Draws progress from events: frames, rate and time left; on a pipe a line now and then."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._total: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._began = self._said = time.monotonic()

    def __call__(self, event: Event) -> None:
        kind = kind_of(event.product)
        match event:
            case Started(n_items=n):
                self._total[kind] = self._total.get(kind, 0) + max(n, 1)
                self._update(kind)
            case ItemsDone(n_items=n):
                self._done[kind] = self._done.get(kind, 0) + n
                self._update(kind)
            case Finished(product=product, n_items=n, made=made):
                self._done[kind] = self._done.get(kind, 0) + (0 if n else 1)
                self._update(kind)
                if made.outcome == "empty":
                    self.say(f"{product}: nothing to make: {made.reason}")
            case Failed(product=product, reason=reason):
                self.say(f"{product}: failed: {reason}", style="red")

    def say(self, text: str, *, style: str | None = None) -> None:
        """A line beside the progress."""
        console = self._bar.console if self._bar is not None else out
        console.print(text, style=style, markup=False)

    def _update(self, kind: str) -> None:
        total, done = self._total.get(kind, 0), self._done.get(kind, 0)
        if self._bar is not None:
            if kind not in self._tasks:
                self._tasks[kind] = self._bar.add_task(kind, total=total)
            self._bar.update(self._tasks[kind], total=total, completed=done)
            return
        now = time.monotonic()
        if now - self._said >= PIPE_EVERY_S:
            self._said = now
            rate = done / (now - self._began)
            self.say(f"{kind}: {done} of {total}, {rate:.1f}/s")

    @contextmanager
    def drawing(self) -> Iterator[Watch]:
        """Progress bars while the block runs, on a terminal."""
        if not out.is_terminal:
            yield self
            return
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=out, transient=True) as bar:
            self._bar = bar
            try:
                yield self
            finally:
                self._bar = None


class _Rate(TextColumn):
    """Items a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        speed = task.finished_speed or task.speed
        self.text_format = "" if speed is None else f"{speed:.1f}/s"
        return super().render(task)


def outcome(result: Outcome, seconds: float) -> None:
    """How a run ended."""
    line(
        f"made {result.n_made}, kept {result.n_kept}, nothing to make {result.n_empty}, "
        f"failed {len(result.failed)}, blocked {len(result.blocked)} in {seconds:.1f} s"
    )
    for product, reason in sorted(result.failed.items()):
        err.print(f"failed   {product}: {reason}", markup=False)
    for product, reason in sorted(result.blocked.items()):
        err.print(f"blocked  {product}: {reason}", markup=False)
    for product, share in sorted(result.cloudy.items()):
        err.print(f"{share:.0%} of the frames of {product} are quarantined", markup=False)
