"""The engine on a real scheduler with worker processes, against the serial runner."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nightloom.engine.cluster import SERIAL, Engine
from nightloom.engine.futures import RETRIES
from nightloom.engine.recipe import Failed, Finished, ItemsDone, TaskDone
from nightloom.engine.task import partitions
from nightloom.errors import ConfigError, ExitCode, RunError
from nightloom.store.encodings import read_arrays
from nightloom.store.products import require
from toys import die, recipe


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real `dask scheduler` with two `dask worker` processes; its scheduler file."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), n_workers=2) as file:
        yield file


@contextmanager
def dask_cluster(folder: Path, *worker_options: str, n_workers: int) -> Iterator[str]:
    """A real `dask scheduler` with `dask worker` processes; its scheduler file."""
    file = folder / "scheduler.json"
    python = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    here = Path(__file__).resolve().parents[1]
    env = {"PYTHONPATH": f"{here}:{here.parent / 'src'}", "PATH": "/usr/bin:/bin",
           "HOME": str(folder), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}  # fmt: skip
    server = [*python, "scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1",
              "--port", "0", "--dashboard-address", "127.0.0.1:0"]  # fmt: skip
    worker = [*python, "worker", "--scheduler-file", str(file), "--nthreads", "1",
              "--no-dashboard", *worker_options]  # fmt: skip
    processes = [subprocess.Popen(server, env=env, **quiet)]
    processes += [subprocess.Popen(worker, env=env, **quiet) for _ in range(n_workers)]
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    yield str(file)
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        process.wait(20)


def make(engine: Engine, root: Path, *recipes: object) -> dict[str, Finished | Failed]:
    events = list(engine.make(root, list(recipes)))  # type: ignore[arg-type]
    ends = {e.product: e for e in events if isinstance(e, Finished | Failed)}
    for one in recipes:
        done = sum(
            e.n_items for e in events if isinstance(e, ItemsDone) and e.product == one.product
        )  # type: ignore[attr-defined]
        if isinstance(ends[one.product], Finished):  # type: ignore[attr-defined]
            assert done == len(one.items)  # type: ignore[attr-defined]
    return ends


def test_serial_makes_and_reports(tmp_path: Path) -> None:
    with Engine(SERIAL) as engine:
        ends = make(
            engine, tmp_path, recipe("a"), recipe("b", fail="step"), recipe("c", fail="bug")
        )
    assert isinstance(ends["cube/a"], Finished)
    assert ends["cube/b"].kind == "product"
    assert "five is not liked" in ends["cube/b"].reason
    assert ends["cube/c"].kind == "bug"
    assert "KeyError" in ends["cube/c"].detail
    values = read_arrays(require(tmp_path, "cube/a"), ["value"])["value"]
    np.testing.assert_array_equal(values, np.arange(20.0) ** 2)
    assert not list(tmp_path.rglob(".work-*"))


def test_real_scheduler_same_products(tmp_path: Path, scheduler: str) -> None:
    links: list[str] = []
    with Engine(scheduler, announce=links.append) as engine:
        ends = make(
            engine, tmp_path, recipe("a"), recipe("b", fail="step"), recipe("c", n=300, chunk=5)
        )
        with urllib.request.urlopen(links[0], timeout=10) as page:  # the dashboard answers
            assert b"Dask" in page.read()
    assert len(links) == 1
    assert isinstance(ends["cube/a"], Finished)
    assert isinstance(ends["cube/c"], Finished)
    assert ends["cube/b"].kind == "product"
    with Engine(SERIAL) as engine:
        make(engine, tmp_path / "serial", recipe("c", n=300))
    for name in ("zarr.json", "value/c/0", "value/c/37"):
        ours = require(tmp_path, "cube/c") / name
        theirs = require(tmp_path / "serial", "cube/c") / name
        assert ours.read_bytes() == theirs.read_bytes()
    assert not list(tmp_path.rglob(".work-*"))


def test_item_that_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    """Trap 40: the others of its partition are kept, the run ends."""
    with Engine() as engine:
        ends = make(engine, tmp_path, recipe("k", fail="kill"))
    assert isinstance(ends["cube/k"], Finished)
    values = read_arrays(require(tmp_path, "cube/k"), ["value"])["value"]
    expected = np.arange(20.0) ** 2
    expected[5] = np.nan
    np.testing.assert_array_equal(values, expected)


def test_partitions_cover_and_respect_shards() -> None:
    cuts = partitions(20, chunk_items=3, shard_items=8)
    assert [i for _, a, b in cuts for i in range(a, b)] == list(range(20))
    assert all(a // 8 == (b - 1) // 8 == shard for shard, a, b in cuts)


def test_cluster_file_with_misspelt_key(tmp_path: Path) -> None:
    file = tmp_path / "local.toml"
    file.write_text('kind = "local"\nworkrs = 2\n')
    with pytest.raises(ConfigError, match="workrs"):
        Engine(str(file))


def test_a_step_that_fails_at_first_is_tried_again(tmp_path: Path) -> None:
    """Retries are obeyed: storage that fails twice for one part costs nothing but time."""
    with Engine() as engine:
        ends = make(engine, tmp_path, recipe("r", fail=f"twice {tmp_path}"))
        events = list(engine.make(tmp_path, [recipe("s", fail=f"always {tmp_path}")]))
    assert isinstance(ends["cube/r"], Finished)
    values = read_arrays(require(tmp_path, "cube/r"), ["value"])["value"]
    np.testing.assert_array_equal(values, np.arange(20.0) ** 2)
    (end,) = [e for e in events if isinstance(e, Failed)]
    assert end.kind == "transient"
    retried = [e for e in events if isinstance(e, TaskDone) and e.record.outcome == "retried"]
    assert len(retried) == RETRIES + 1
    assert not list(tmp_path.rglob(".work-*"))


def test_a_shard_still_written_when_its_product_failed(tmp_path: Path) -> None:
    """What a task writes after its product was given up does not stay."""
    with Engine() as engine:
        ends = make(engine, tmp_path, recipe("l", fail=f"late {tmp_path}"))
    assert "nineteen" in ends["cube/l"].reason
    assert (tmp_path / "packing").exists()
    assert not list(tmp_path.rglob(".work-*"))


@contextmanager
def joined_to_one_worker(folder: Path) -> Iterator[Engine]:
    """An engine whose only worker is not started again; it waits for another for 8 s."""
    with dask_cluster(folder, "--no-nanny", n_workers=1) as scheduler:
        file = folder / "join.toml"
        file.write_text(f'kind = "join"\nscheduler_file = "{scheduler}"\nstart_timeout_s = 8\n')
        with Engine(str(file)) as engine:
            yield engine


def test_workers_that_are_all_gone_end_the_run(tmp_path: Path) -> None:
    """A clear end after a stated time, not a hang."""
    with (
        joined_to_one_worker(tmp_path) as engine,
        pytest.raises(RunError, match="none came back in 8 s") as refused,
    ):
        make(engine, tmp_path, recipe("k", fail="kill"))
    assert refused.value.exit_code == ExitCode.RUN_FAILED
    assert not list(tmp_path.rglob(".work-*"))


def test_workers_that_are_all_gone_end_a_function_over_chunks(tmp_path: Path) -> None:
    """Headers are read so, and shards verified."""
    with (
        joined_to_one_worker(tmp_path) as engine,
        pytest.raises(RunError, match="none came back in 8 s"),
    ):
        list(engine.map(die, [["a"], ["b"]], kind="scan"))


def test_every_task_leaves_a_record(tmp_path: Path) -> None:
    """Serial and on workers: the same tasks by kind, each with what it cost."""
    with Engine() as engine:
        far = list(engine.make(tmp_path / "far", [recipe("t")]))
    with Engine(SERIAL) as engine:
        near = list(engine.make(tmp_path / "near", [recipe("t")]))
    for events in (far, near):
        records = [e.record for e in events if isinstance(e, TaskDone)]
        assert sum(r.n_frames for r in records if r.kind == "step") == 20
        assert [r.kind for r in records].count("begin") == 1
        assert [r.kind for r in records].count("pack") == 3
        assert records[-1].kind == "finish"
        assert {r.outcome for r in records} == {"done"}
        for record in records:
            assert record.queued_s <= record.started_s + 0.01
            assert record.seconds >= 0
            assert record.peak_bytes > 10e6
        assert any(r.bytes_read > 0 for r in records)
