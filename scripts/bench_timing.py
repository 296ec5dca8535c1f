"""What the benchmarks share: the stopwatch, the surroundings, the gates."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# One thread; and freed memory is kept, as in the workers of a run: else each frame's arrays are
# faulted in page by page.
ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
ENVIRONMENT |= {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time of this thread for one call."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def begin_again_in_environment() -> None:
    """Libraries and the allocator read these when a process starts: begin again with them."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)


def finish(
    found: Mapping[Any, dict[str, Any]],
    gates: Mapping[Any, dict[str, float]],
    options: argparse.Namespace,
    *,
    at_most: frozenset[str],
) -> int:
    """Write the figures, say which miss their gates; 1 if one does. Gates are for 2048 pixels.

    at_most: figures that must not exceed their gate; the others must reach it.
    """
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    missed = False
    for name, figures in found.items() if options.size == 2048 else ():
        for key, gate in gates.get(name, {}).items():
            value = figures[key]
            good = value is None or (value <= gate if key in at_most else value >= gate)
            if not good:
                print(f"below the gate: {name} {key} {value:.1f}, the gate is {gate:g}")
                missed = True
    return int(missed)


def add_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=rounds, help="of which the median is taken")
    parser.add_argument("--size", type=int, default=2048, help="pixels a side; gates are for 2048")
