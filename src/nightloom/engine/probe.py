"""Whether the workers see the same files and the same clock as this process."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from nightloom.errors import RunError

SEEN_AFTER_S = 30.0  # attributes of a network file system may be cached that long


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What one worker found, and what was seen here of what it wrote."""

    address: str
    unseen: tuple[str, ...]  # files that it can't read
    write_error: str  # why it can't write beside the products, "" where it can
    clock_ahead_s: float  # of this process; 0 within the time a question takes


def probe_workers(client: Client, files: Sequence[Path], folder: Path) -> list[WorkerFacts]:
    """Every worker reads the first bytes of some files and writes a file into a folder.

    Raises RunError: a worker does not answer.
    """
    clocks: dict[str, float] = {}
    for address in client.scheduler_info(n_workers=-1)["workers"]:
        before = time.time()
        there = client.run(time.time, workers=[address])[address]
        clocks[address] = min(there - before, 0.0) or max(there - time.time(), 0.0)
    answers = client.run(_look, [str(f) for f in files], str(folder), on_error="return")
    facts: list[WorkerFacts] = []
    for address, answer in answers.items():
        if isinstance(answer, Exception):
            raise RunError(where=address, why=f"{type(answer).__name__}: {answer}")
        unseen, written, error = answer
        if not error and not _appears(Path(written)):
            error = f"{written} was written there and is not seen here: another file system?"
        facts.append(WorkerFacts(address, unseen, error, clocks.get(address, 0.0)))
    return facts


def _look(files: list[str], folder: str) -> tuple[tuple[str, ...], str, str]:
    """In a worker: files that can't be read, the file written, why it could not be."""
    unseen: list[str] = []
    for name in files:
        try:
            with Path(name).open("rb") as file:
                file.read(80)
        except OSError as error:
            unseen.append(f"{name}: {error.strerror}")
    written = Path(folder) / f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        written.write_bytes(b"nightloom")
    except OSError as error:
        return tuple(unseen), str(written), error.strerror or str(error)
    return tuple(unseen), str(written), ""


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SEEN_AFTER_S
    while time.monotonic() < deadline:
        os.listdir(path.parent)  # noqa: PTH208 - asks the server anew, where a stat would not
        if path.exists():
            return True
        time.sleep(0.2)
    return False
