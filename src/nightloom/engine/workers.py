"""What every worker is given, here and on other nodes, and whether it has the same versions."""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Iterable
from typing import Any

from distributed import Client

from nightloom.errors import RunError
from nightloom.store.provenance import PACKAGES

CONNECT_S = 30
# One thread each for BLAS and numba: the parallel unit is the frame.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # Frames are of one size: what one gives back, the next takes, without asking the system.
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
}
QUIET = {
    "distributed.worker.profile.interval": "10s",
    "distributed.worker.profile.cycle": "100s",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "1s",  # at 20 ms each process burns 15 ms a second idle
    # Of each worker the scheduler keeps the last messages, with the tasks in them: for a thousand
    # workers a thousand messages each, by default.
    "distributed.admin.low-level-log-length": 20,
    "distributed.scheduler.allowed-failures": 1,
    "distributed.worker.multiprocessing-method": "spawn",
    # A worker that pauses on memory which no task holds stays paused for ever (distributed #5999).
    # Rows are small, so nothing is worth spilling either: at 95 % the nanny starts it anew.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,
    "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
}
# What decides the bits of a product, and what scheduler and workers speak with each other.
SAME_EVERYWHERE = ("python", "dask", "distributed", "numcodecs", "pyerfa", *PACKAGES)


def environment() -> dict[str, str]:
    """Variables that make any `dask worker` and `dask scheduler` as ours are on this machine."""
    variables = dict(ONE_THREAD)
    for name, value in QUIET.items():
        key = "DASK_" + name.upper().replace(".", "__").replace("-", "_")
        variables[key] = value if isinstance(value, str) else json.dumps(value)
    return variables


def exports() -> list[str]:
    """The same as lines of a shell script."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment().items()]


def check_versions(client: Client, *, known: Iterable[str] = ()) -> set[str]:
    """Refuse workers on which something differs; returns the addresses of all that are there.

    known: addresses that were checked before. Raises RunError: says what differs, and where.
    """
    there = set(client.scheduler_info(n_workers=-1)["workers"])
    if not there.difference(known):
        return there
    found = client.get_versions(packages=SAME_EVERYWHERE[1:])
    here = found["client"]["packages"]
    version = importlib.import_module("nightloom").__version__
    # A builtin: what lies in nightloom can't be unpickled where there is none, or an older one.
    ours = client.run(
        eval, "__import__('nightloom').__version__", workers=sorted(there), on_error="return"
    )
    differing: dict[str, list[str]] = {}
    for address, theirs in found["workers"].items():
        packages: dict[str, Any] = theirs["packages"]
        said = [
            _difference(name, packages.get(name), here.get(name))
            for name in SAME_EVERYWHERE
            if packages.get(name) != here.get(name)
        ]
        nightloom = ours.get(address, version)
        if nightloom != version:
            said.insert(0, _difference("nightloom", nightloom, version))
        if said:
            differing.setdefault("; ".join(said), []).append(address)
    if differing:
        raise RunError(
            where="workers",
            why=" | ".join(
                f"{addresses[0]}" + (f" and {len(addresses) - 1} more" if addresses[1:] else "")
                + f": {said}"
                for said, addresses in differing.items()
            ),
            do="install the same versions everywhere: products depend on them",
        )  # fmt: skip
    return there


def _difference(name: str, there: object, here: object) -> str:
    shown = "none" if there is None or isinstance(there, Exception) else str(there)
    return f"{name} {shown}, here {here}"
