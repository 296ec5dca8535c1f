"""Workers elsewhere: with other versions, behind TLS, or not there at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from certificates import write_certificates
from nightloom.engine.cluster import Engine
from nightloom.engine.probe import probe_workers
from nightloom.engine.recipe import Finished
from nightloom.errors import RunError
from nightloom.store.encodings import read_arrays
from nightloom.store.products import require
from toys import recipe

TESTS = str(Path(__file__).resolve().parents[1])
SOURCES = str(Path(TESTS).parent / "src")
# A worker whose numpy is an older one, as far as it can tell itself.
OTHER_NUMPY = """\
import importlib.metadata as metadata
true = metadata.version
metadata.version = lambda name: "1.26.4" if name == "numpy" else true(name)
"""
OTHER_NIGHTLOOM = '__version__ = "0.0.9"\n'


@contextmanager
def dask(*arguments: str, path: tuple[str, ...] = (TESTS, SOURCES), cwd: Path) -> Iterator[None]:
    """`dask scheduler` or `dask worker` while the block runs."""
    env = os.environ | {"PYTHONPATH": ":".join(path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments], env=env, cwd=cwd,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def scheduler(folder: Path, *security: str) -> Iterator[str]:
    """A scheduler without workers; its file."""
    file = folder / "scheduler.json"
    with dask("scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1", "--port", "0",
              "--dashboard-address", "127.0.0.1:0", *security, cwd=folder):  # fmt: skip
        deadline = time.monotonic() + 60
        while not (file.exists() and file.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield str(file)


def worker(file: str, *security: str) -> tuple[str, ...]:
    return ("worker", "--scheduler-file", file, "--nthreads", "1", "--no-dashboard", *security)


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scheduler(tmp_path_factory.mktemp("lonely")) as file:
        yield file


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("sitecustomize.py", OTHER_NUMPY, r"workers: .*numpy 1\.26\.4, here "),
        ("nightloom.py", OTHER_NIGHTLOOM, r"workers: .*nightloom 0\.0\.9, here "),
    ],
)
def test_other_versions_are_refused(
    tmp_path: Path, lonely: str, module: str, source: str, words: str
) -> None:
    (tmp_path / module).write_text(source)
    path = (str(tmp_path), TESTS, SOURCES)
    with (
        dask(*worker(lonely), path=path, cwd=tmp_path),
        Engine(lonely) as engine,
        pytest.raises(RunError, match=words),
    ):
        engine.connected()


def test_no_worker_in_time(tmp_path: Path, lonely: str) -> None:
    file = tmp_path / "join.toml"
    file.write_text(f'kind = "join"\nscheduler_file = "{lonely}"\nstart_timeout_s = 0.5\n')
    with Engine(str(file)) as engine, pytest.raises(RunError, match=r"no worker came in 0\.5 s"):
        engine.connected()


def test_no_scheduler(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with Engine(f"tcp://127.0.0.1:{port}") as engine, pytest.raises(RunError, match="refused"):
        engine.connected()
    stale = tmp_path / "scheduler.json"
    stale.write_text(f'{{"address": "tcp://127.0.0.1:{port}"}}')
    with Engine(str(stale)) as engine, pytest.raises(RunError, match="refused"):
        engine.connected()
    assert time.monotonic() - started < 20  # dask alone would try for thirty seconds, each
    with Engine(str(tmp_path / "no.json")) as engine, pytest.raises(RunError, match="no such f"):
        engine.connected()
    stale.write_text("{}")
    with Engine(str(stale)) as engine, pytest.raises(RunError, match="is no scheduler file"):
        engine.connected()


def test_tls(tmp_path: Path) -> None:
    """With the certificate products are made; without it nobody gets in."""
    files = write_certificates(tmp_path / "tls")
    security = ("--tls-ca-file", str(files["ca"]), "--tls-cert", str(files["cert"]),
                "--tls-key", str(files["key"]))  # fmt: skip
    with ExitStack() as stack:
        file = stack.enter_context(scheduler(tmp_path, "--protocol", "tls", *security))
        stack.enter_context(dask(*worker(file, *security), cwd=tmp_path))
        assert '"address": "tls://' in Path(file).read_text()
        config = tmp_path / "join.toml"
        text = f'kind = "join"\nscheduler_file = "{file}"\n'
        config.write_text(text)
        with Engine(str(config)) as engine, pytest.raises(RunError, match="no scheduler answers"):
            engine.connected()
        keys = "".join(f'{name} = "{path}"\n' for name, path in files.items())
        config.write_text(f"{text}[tls]\n{keys}")
        with Engine(str(config)) as engine:
            events = list(engine.make(tmp_path, [recipe("a")]))
            facts = probe_workers(engine.connected(), [files["ca"], tmp_path / "no"], tmp_path)
        assert isinstance(events[-1], Finished)
    values = read_arrays(require(tmp_path, "cube/a"), ["value"])["value"]
    np.testing.assert_array_equal(values, np.arange(20.0) ** 2)
    (fact,) = facts
    assert fact.unseen == (f"{tmp_path}/no: No such file or directory",)
    assert fact.write_error == ""
    assert abs(fact.clock_ahead_s) < 0.5
