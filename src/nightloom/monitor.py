"""What is seen of a run while it goes: the dashboard's page, and a file for other processes.

A thread of its own folds the run's events; nothing that goes wrong in it reaches the run.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightloom import __version__
from nightloom.engine.dashboard import page_of
from nightloom.engine.progress import AT_LENGTH, Board, Detail, Listed, state_of, take
from nightloom.engine.recipe import Event, Finished, LogLine, Started, TaskDone
from nightloom.pipeline import Run, read_frames
from nightloom.report.nights import nights_page, read_board, read_detail
from nightloom.store.ledger import Expected, read_expected, read_line
from nightloom.store.products import write_text

RUN_FILE = "logs/run.json"
EVERY_S, MOST_S = 1.0, 30.0
WORTH = 100  # the state is made at most in one part of so many of the time
LOST_S = 120.0  # a run on another host that was silent for so long is gone
JOIN_S = 10.0


@dataclass(slots=True)
class _Watched:
    """A run, what came from it, and what is known of it; the board is the thread's own."""

    run: Run
    say: Callable[[str], None]
    events: queue.SimpleQueue[tuple[float, Event] | None]
    began_s: float
    board: Board | None = None
    listed: dict[str, Listed] = field(default_factory=dict)  # before there is a board
    has_page: bool = False
    says_no_page: bool = False
    is_over: bool = False  # nothing is taken in any more


@contextmanager
def monitoring(run: Run, *, say: Callable[[str], None]) -> Iterator[None]:
    """Show a run while the block goes on: on its dashboard, and in `products/logs/run.json`.

    say: tells the user where the page is, or why there is none.
    """
    watched = _Watched(run, say, queue.SimpleQueue(), time.time())

    def listen(event: Event) -> None:
        if not watched.is_over and not isinstance(event, LogLine | TaskDone):
            watched.events.put((time.time(), event))

    thread = threading.Thread(target=_watch, args=(watched,), name="monitor", daemon=True)
    run.listeners.append(listen)
    thread.start()
    try:
        yield
    finally:
        watched.events.put(None)
        thread.join(JOIN_S)


def read_run(root: Path) -> dict[str, Any] | None:
    """The state of the run that goes on in some process; None if there is none.

    A run that ended without a word is known by its process being gone, or on another host by
    its silence.
    """
    try:
        state: dict[str, Any] = json.loads((root / RUN_FILE).read_text(encoding="utf-8"))
        ended, host, pid, as_of = (state[key] for key in ("ended", "host", "pid", "as_of_s"))
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    if ended or time.time() - as_of > LOST_S:
        return None
    return None if host == socket.gethostname() and not _lives(int(pid)) else state


def state_on_disk(root: Path, expected: list[Expected]) -> dict[str, Any]:
    """What the page shows of the products that are expected, read off them alone."""
    board = read_board(root, expected, read_frames(root))
    more = {"ended": True, "workers": [], "products_folder": str(root)}
    return state_of(board, time.time()) | more


def _watch(watched: _Watched) -> None:
    """The thread: take events in, and every second or so show what they came to."""
    try:
        going, pause = True, EVERY_S
        while going:
            going = _drain(watched, pause)
            started = time.perf_counter()
            _show(watched, ended=not going)
            cost = time.perf_counter() - started
            pause = min(MOST_S, max(EVERY_S, WORTH * cost))
    except Exception as error:  # noqa: BLE001 - the run does not depend on who looks at it
        watched.is_over = True
        _say(watched, f"the run is not monitored any more: {type(error).__name__}: {error}")


def _say(watched: _Watched, text: str) -> None:
    watched.say(text)
    watched.run.log(text)


def _drain(watched: _Watched, seconds: float) -> bool:
    """Wait some seconds and take in what came; False when the run is over."""
    until = time.monotonic() + seconds
    while True:
        # Past the time nothing is waited for, but what is there already is taken.
        left = max(0.0, until - time.monotonic())
        try:
            entry = watched.events.get(block=left > 0, timeout=left)
        except queue.Empty:
            return True
        if entry is None:
            return False
        _take(watched, *entry)


def _take(watched: _Watched, now_s: float, event: Event) -> None:
    root, board = watched.run.root, watched.board
    if board is None:
        # Years of nights are read only when there is something to make.
        if isinstance(event, Listed):
            watched.listed[event.product] = event
        if not isinstance(event, Started):
            return
        board = watched.board = read_board(root, read_expected(root), read_frames(root))
        for listed in watched.listed.values():
            _list(root, board, listed)
    if isinstance(event, Listed):
        _list(root, board, event)
    take(board, event, now_s)
    if isinstance(event, Finished):
        _detail(root, board, event.product)


def _list(root: Path, board: Board, event: Listed) -> None:
    before, line = board.lines.get(event.product), read_line(root, event.item)
    board.lines[event.product] = line
    if before is None or (before.published, before.attempt) != (line.published, line.attempt):
        _detail(root, board, event.product)


def _detail(root: Path, board: Board, product: str) -> None:
    detail = read_detail(root, board.lines[product])
    if detail != Detail() or product in board.details:
        board.details[product] = detail


def _show(watched: _Watched, *, ended: bool) -> None:
    """Write the state for other processes, and hand it to the page."""
    run, now_s = watched.run, time.time()
    about = {
        "run": run.id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began_s": round(watched.began_s, 1),
        "dashboard": run.engine.dashboard,
        "products_folder": str(run.root),
        "ended": ended,
    }
    board = watched.board
    state = about | ({"as_of_s": now_s} if board is None else state_of(board, now_s))
    short = {key: value for key, value in state.items() if key not in AT_LENGTH}
    write_text(run.root / RUN_FILE, json.dumps(short) + "\n")
    if board is not None and run.engine.dashboard and not watched.says_no_page:
        _post(watched, json.dumps(state).encode())


def _post(watched: _Watched, state: bytes) -> None:
    engine, run = watched.run.engine, watched.run
    try:
        if not watched.has_page:
            engine.show_page(run=run.id, page=nights_page(None, version=__version__))
            watched.has_page = True
            _say(watched, f"nights: {page_of(engine.dashboard)}")
        engine.post(run=run.id, board=state)
    except Exception as error:  # noqa: BLE001 - said once; the file goes on, and so does the run
        watched.says_no_page = True
        _say(watched, f"no page of the nights: {error}; the run goes on without it")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
