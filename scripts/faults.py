#!/usr/bin/env python
"""Break runs at random instants and see what is left: the fault campaign.

Each fault: a fresh copy of a tiny archive, `nightloom run` on a real local cluster, the fault at a
random instant, `nightloom run` again. Then every product is compared, byte by byte, with those of
a run that nobody disturbed; temporary folders are looked for; and a reader that polled all the
while must never have seen a product that is not whole.

    scripts/faults.py --n 20 --json faults.json

Disk full is a tmpfs of a size that holds half of the products; the read-only folder a bind mount
that is made read-only: both need root. Without it they are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from nightloom.archive import FRAMES, open_archive, open_dataset
from nightloom.engine.calls import REASON_LOST
from nightloom.errors import NightloomError
from nightloom.pipeline import read_frames
from nightloom.store.encodings import missing_shards, read_arrays, read_attributes
from nightloom.store.ledger import read_expected
from nightloom.store.products import current
from nightloom.synth.archive import write_archive
from nightloom.synth.truth import SynthSpec

NIGHTLOOM = [sys.executable, "-c", "from nightloom.cli.start import main; main()"]
WAIT_S = 600
SERIAL = ("--cluster", "serial")


@dataclass(slots=True)
class Score:
    """What a fault came to, over all its repetitions."""

    fault: str
    n: int = 0
    n_struck: int = 0  # the fault came before the run was over
    n_equal: int = 0
    n_exit_as_said: int = 0  # the disturbed run ended as the documentation says
    n_leftovers: int = 0
    n_half_visible: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass(slots=True)
class Trial:
    """One archive in which one thing goes wrong."""

    folder: Path
    verb: str
    work_s: float  # how long the undisturbed run worked, from its first log line
    random: random.Random
    struck: bool = False

    @property
    def config(self) -> Path:
        return self.folder / "nightloom.toml"

    @property
    def products(self) -> Path:
        return self.folder / "products"

    def launch(self, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        """A run that is only just started."""
        return subprocess.Popen(
            [*NIGHTLOOM, self.verb, str(self.config), *more], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ | environment,
        )  # fmt: skip

    def start(self, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        """A run, up to its first log line."""
        before = set(self.products.glob("logs/*.log"))
        run = self.launch(*more, **environment)
        deadline = time.monotonic() + WAIT_S
        while run.poll() is None and time.monotonic() < deadline:
            if set(self.products.glob("logs/*.log")) - before:
                break
            time.sleep(0.02)
        return run

    def sleep(self) -> None:
        """Until a random instant of the run."""
        time.sleep(self.random.uniform(0.0, 1.0) * self.work_s)


@dataclass(frozen=True, slots=True)
class Fault:
    """Disturbs a run; returns its exit code. `codes`: those with which it may end."""

    name: str
    disturb: Callable[[Trial], int]
    codes: tuple[int, ...]
    needs_root: bool = False


def two_workers(folder: Path) -> tuple[str, str]:
    """Arguments for a local cluster of two workers."""
    file = folder / "local.toml"
    file.write_text('kind = "local"\nworkers = 2\n')
    return "--cluster", str(file)


def worker_killed(trial: Trial) -> int:
    """SIGKILL for a worker process, at random."""
    run = trial.start(*two_workers(trial.folder))
    trial.sleep()
    while not (workers := _workers(run.pid)) and run.poll() is None:
        time.sleep(0.01)  # not there yet
    trial.struck = bool(workers)
    if workers:
        trial.random.choice(workers).kill()
    return run.wait(WAIT_S)


def driver_killed(trial: Trial) -> int:
    """SIGKILL for the driver; its workers must not outlive it."""
    run = trial.start(*two_workers(trial.folder))
    trial.sleep()
    workers = _workers(run.pid)
    trial.struck = run.poll() is None
    run.kill()
    code = run.wait(WAIT_S)
    psutil.wait_procs(workers, timeout=30)
    return code


def scheduler_killed(trial: Trial) -> int:
    """SIGKILL for a `dask scheduler` that the run joined."""
    file = trial.folder / "scheduler.json"
    python = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*python, "scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1", "--port", "0",
         "--no-dashboard"], **quiet)  # fmt: skip
    worker = subprocess.Popen(
        [*python, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard",
         "--death-timeout", "20"], cwd=trial.folder, **quiet)  # fmt: skip
    try:
        deadline = time.monotonic() + WAIT_S
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        run = trial.start("--cluster", str(file))
        trial.sleep()
        trial.struck = run.poll() is None
        scheduler.kill()
        return run.wait(WAIT_S)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait(30)


def interrupted(trial: Trial) -> int:
    """SIGINT for the whole group, as a terminal sends it."""
    run = trial.start(*two_workers(trial.folder))
    trial.sleep()
    trial.struck = run.poll() is None
    if trial.struck:
        os.killpg(run.pid, signal.SIGINT)
    return run.wait(WAIT_S)


def terminated(trial: Trial) -> int:
    """SIGTERM for the driver, as a batch system sends it."""
    run = trial.start(*two_workers(trial.folder))
    trial.sleep()
    trial.struck = run.poll() is None
    if trial.struck:
        run.terminate()
    return run.wait(WAIT_S)


def disk_full(trial: Trial) -> int:
    """A small tmpfs for the products: it fills up while they are made."""
    full = trial.folder / "full"
    there, in_the_end = (
        sum(_kib_in_pages(file) for file in folder.rglob("*"))
        for folder in (trial.products, trial.folder.parent / "undisturbed" / "products")
    )
    kib = there + int((in_the_end - there) * trial.random.uniform(0.2, 0.8))
    with mounted(full, "-t", "tmpfs", "-o", f"size={kib}k"):
        trial.products.mkdir(exist_ok=True)
        with swapped(trial.products, full):
            code = trial.start(*two_workers(trial.folder)).wait(WAIT_S)
            trial.struck = code != 0
            return code


def _kib_in_pages(path: Path) -> int:
    """What a file takes of a tmpfs, which counts pages; folders take none."""
    return 0 if path.is_dir() or path.is_symlink() else -(-path.stat().st_size // 4096) * 4


def read_only(trial: Trial) -> int:
    """The products' file system turns read-only while the run goes on."""
    trial.products.mkdir(exist_ok=True)
    with mounted(trial.products, "--bind", str(trial.products)):
        run = trial.start(*two_workers(trial.folder))
        trial.sleep()
        trial.struck = run.poll() is None
        _turn_read_only(trial.products)
        return run.wait(WAIT_S)


def file_removed(trial: Trial) -> int:
    """A raw frame goes away after the scan, and is back for the next run."""
    with _damaged(trial, lambda path: path.unlink()):
        return trial.start(*two_workers(trial.folder)).wait(WAIT_S)


def file_truncated(trial: Trial) -> int:
    """A raw frame is cut after the scan, as by a copy that goes on; whole for the next run."""
    with _damaged(trial, lambda path: os.truncate(path, path.stat().st_size // 2)):
        return trial.start(*two_workers(trial.folder)).wait(WAIT_S)


DEADLY = """\
import multiprocessing, os, signal, sys

def hook(event, arguments):
    if event == "open" and str(arguments[0]) == os.environ["DEADLY"]:
        if multiprocessing.current_process().name != "MainProcess":
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
"""


def frame_kills(trial: Trial) -> int:
    """A raw frame that no worker survives opening; the next machine does, by `retry --failed`."""
    path = _science_frame(trial)
    hook = trial.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(DEADLY)
    verb, trial.verb = trial.verb, "reduce"
    run = trial.start(*two_workers(trial.folder), PYTHONPATH=str(hook), DEADLY=str(path))
    code = run.wait(WAIT_S)
    there, usual = (
        open_archive(products).frames.set_index("path")
        for products in (trial.products, trial.folder.parent / "undisturbed" / "products")
    )
    name = next(name for name in there.index if path.as_posix().endswith(f"/{name}"))
    trial.struck = REASON_LOST in there["reason"][name] and there["state"].drop(name).equals(
        usual["state"].drop(name)
    )
    retry = [*NIGHTLOOM, "retry", "--failed", "--config", str(trial.config), *SERIAL]
    code = max(code, subprocess.run(retry, stdout=subprocess.DEVNULL, check=False).returncode)
    trial.verb = verb
    return code


def two_drivers(trial: Trial) -> int:
    """Two runs on the same products at once."""
    first, second = trial.launch(*SERIAL), trial.launch(*SERIAL)
    trial.struck = True
    return max(first.wait(WAIT_S), second.wait(WAIT_S))


FAULTS = (
    Fault("worker killed", worker_killed, (0,)),
    Fault("scheduler killed", scheduler_killed, (0, 3)),
    Fault("driver killed", driver_killed, (0, -9)),
    Fault("SIGINT", interrupted, (0, 130)),
    Fault("SIGTERM", terminated, (0, 130)),
    Fault("disk full", disk_full, (1, 3), needs_root=True),
    Fault("read-only products", read_only, (0, 1, 3), needs_root=True),
    Fault("file removed", file_removed, (0, 1)),
    Fault("file truncated", file_truncated, (0, 1)),
    Fault("frame kills worker", frame_kills, (0, 1)),
    Fault("two drivers", two_drivers, (0,)),
)


def _science_frame(trial: Trial) -> Path:
    """One at random, after a scan."""
    if not (trial.products / "frames.parquet").exists():
        scan = [*NIGHTLOOM, "scan", str(trial.config), *SERIAL]
        subprocess.run(scan, check=True, stdout=subprocess.DEVNULL)
    frames = read_frames(trial.products)
    science = frames[frames["image_type"] == "science"]
    paths = zip(science["root"], science["path"], strict=True)
    return trial.random.choice(sorted(Path(root) / name for root, name in paths))


@contextmanager
def _damaged(trial: Trial, damage: Callable[[Path], None]) -> Iterator[None]:
    """A science frame damaged after the scan of a run of its own, mended at the end."""
    path = _science_frame(trial)
    trial.struck = True
    kept = trial.folder / "kept"
    shutil.copy2(path, kept)
    damage(path)
    verb, trial.verb = trial.verb, "reduce"
    try:
        yield
    finally:
        trial.verb = verb
        path.unlink(missing_ok=True)
        shutil.copy2(kept, path)


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """A file system mounted at a folder."""
    folder.mkdir(exist_ok=True)
    if arguments[0] == "-t":
        arguments = (*arguments, "none")
    _mount(*arguments, str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def swapped(products: Path, small: Path) -> Iterator[None]:
    """The products on a small file system; what was made there is kept afterwards."""
    # Whole folders take each other's place: a reader polls all the time.
    aside = products.with_name("products-aside")
    shutil.copytree(products, small, dirs_exist_ok=True, symlinks=True)
    products.rename(aside)
    products.symlink_to(small)
    shutil.rmtree(aside)
    try:
        yield
    finally:
        shutil.copytree(small, aside, symlinks=True)
        products.unlink()
        aside.rename(products)


def _turn_read_only(folder: Path) -> None:
    """The kernel refuses while somebody writes at that instant: asked until it is done."""
    for _ in range(500):
        done = subprocess.run(
            ["mount", "-o", "remount,ro,bind", str(folder)], capture_output=True, check=False
        )
        if not done.returncode:
            return
        time.sleep(0.01)
    raise SystemExit(f"{folder} can't be made read-only: {done.stderr.decode()}")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _workers(pid: int) -> list[psutil.Process]:
    """Worker processes of a run."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [p for p in children if _is_worker(p)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


class Reader:
    """Opens every published product in a loop, as a notebook would, and counts what is broken."""

    def __init__(self, root: Path, expected: dict[str, str]) -> None:
        self._root = root
        self._names = list(expected)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self.broken: set[str] = set()

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _poll(self) -> None:
        seen: set[Path] = set()
        while not self._end.wait(0.1):
            if not opens(self._root):
                self.broken.add("ledger")
            for name in self._names:
                path = current(self._root, name)
                if path is None or path in seen:
                    continue
                if not is_whole(path) and path.exists():
                    self.broken.add(name)
                seen.add(path)


def opens(root: Path) -> bool:
    """Whether a notebook that opens the archive just now gets its ledger."""
    try:
        if (root / FRAMES).exists():
            len(open_archive(root).ledger)
    except (NightloomError, OSError, ValueError, KeyError):
        return False
    return True


def is_whole(path: Path) -> bool:
    """Whether every array of a store can be read, or a page has its end."""
    try:
        if path.suffix == ".html":
            return "</html>" in path.read_text(encoding="utf-8")
        if missing_shards(path):
            return False
        read_attributes(path)
        open_dataset(path).load()
        read_arrays(path, [p.parent.name for p in path.glob("*/zarr.json")])
    except (NightloomError, OSError, ValueError, KeyError):
        return False
    return True


def digests(root: Path) -> dict[str, str]:
    """Digest of every byte of each product that is published."""
    out: dict[str, str] = {}
    for item in read_expected(root):
        path = current(root, item.product)
        if path is not None:
            hasher = hashlib.blake2b()
            for file in sorted([path] if path.is_file() else path.rglob("*")):
                if file.is_file():
                    hasher.update(str(file.relative_to(path)).encode())
                    hasher.update(file.read_bytes())
            out[item.product] = path.name + hasher.hexdigest()
    return out


def leftovers(root: Path) -> list[str]:
    """What a run should have removed: work folders, files that were not renamed."""
    hidden = (p for p in root.rglob(".*") if p.name != ".versions")
    return sorted(str(p.relative_to(root)) for p in hidden)


def undisturbed(folder: Path, verb: str, start: Path | None) -> tuple[dict[str, str], float]:
    """Products of a run that nobody disturbs, and how long it worked."""
    trial = _trial(folder, verb, start, 0.0, random.Random(0))
    run = trial.start(*two_workers(folder))
    began = time.monotonic()
    if run.wait(WAIT_S) != 0:
        raise SystemExit(f"the undisturbed run failed: see {trial.products}/logs")
    return digests(trial.products), time.monotonic() - began


def _trial(folder: Path, verb: str, start: Path | None, work_s: float, rng: random.Random) -> Trial:
    if start is not None and not folder.exists():
        shutil.copytree(start, folder, symlinks=True)
    return Trial(folder, verb, work_s, rng)


def break_once(
    fault: Fault, start: Path, folder: Path, *, verb: str, expected: dict[str, str],
    work_s: float, seed: int, score: Score,
) -> None:  # fmt: skip
    """One fault in a copy of `start`; adds to its score."""
    trial = _trial(folder, verb, start, work_s, random.Random(f"{fault.name} {seed}"))
    began = time.monotonic()
    with Reader(trial.products, expected) as reader:
        code = fault.disturb(trial)
        again = trial.start(*SERIAL).wait(WAIT_S)
    score.n += 1
    score.n_struck += trial.struck
    score.n_exit_as_said += code in fault.codes
    left = leftovers(trial.products)
    # `retry` may have gone on to what a shorter verb leaves out.
    equal = again == 0 and expected.items() <= digests(trial.products).items()
    score.n_equal += equal
    score.n_leftovers += bool(left)
    score.n_half_visible += bool(reader.broken)
    score.seconds += time.monotonic() - began
    if code not in fault.codes or left or not equal or reader.broken:
        score.note = f"exit {code}, again {again}, left {left[:2]}, broken {sorted(reader.broken)}"
    shutil.rmtree(folder, ignore_errors=True)


def table(scores: list[Score]) -> str:
    """The scores for people."""
    columns = ("n", "struck", "equal", "exit", "left", "half", "s each")
    head = f"{'fault':<20}" + "".join(f"{name:>8}" for name in columns) + "  note"
    rows = [
        f"{s.fault:<20}{s.n:>8}{s.n_struck:>8}{s.n_equal:>8}{s.n_exit_as_said:>8}"
        f"{s.n_leftovers:>8}{s.n_half_visible:>8}{s.seconds / max(s.n, 1):>8.1f}  {s.note}"
        for s in scores
    ]
    return "\n".join([head, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--n", type=int, default=20, help="repetitions of each fault")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--folder", type=Path, help="where archives are copied to")
    parser.add_argument("--json", type=Path, help="file for the scores")
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="faults-", dir=args.folder))
    start = base / "start"
    write_archive(start, SynthSpec(n_nights=2, frames_per_night=8, ny=128, nx=128, n_stars=40))
    expected, work_s = undisturbed(base / "undisturbed", "run", start)
    print(f"{len(expected)} products in {work_s:.1f} s of an undisturbed run", flush=True)
    scores: list[Score] = []
    for fault in (f for f in FAULTS if args.only in f.name):
        score = Score(fault.name)
        scores.append(score)
        if fault.needs_root and os.geteuid() != 0:
            score.note = "left out: needs root to mount"
            continue
        for k in range(args.n):
            break_once(
                fault, start, base / f"{fault.name.replace(' ', '-')}-{k}", verb="run",
                expected=expected, work_s=work_s, seed=k, score=score,
            )  # fmt: skip
        print(table([score]).splitlines()[1], flush=True)
    print(table(scores))
    if args.json:
        args.json.write_text(json.dumps([asdict(s) for s in scores], indent=1))
    shutil.rmtree(base, ignore_errors=True)
    bad = any(s.n_equal < s.n or s.n_leftovers or s.n_half_visible for s in scores)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
