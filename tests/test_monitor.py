"""What is seen of a run while it goes, on a real cluster, against the ledger on disk."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from archives import star_field, write_config, write_frame
from nightloom import pipeline
from nightloom.cli.app import app
from nightloom.config import load_config
from nightloom.engine import dashboard
from nightloom.engine.cluster import SERIAL, Engine
from nightloom.monitor import RUN_FILE, monitoring, read_run, state_on_disk
from nightloom.report.nights import nights_page
from nightloom.store.ledger import read_expected
from toys import recipe

NY, NX = 140, 160
WAIT_S = 60.0


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights: one frame without stars, one broken file, three bias frames, a target."""
    folder = tmp_path_factory.mktemp("monitor")
    x, y, flux = star_field(16, ny=NY, nx=NX, seed=6)
    for k in range(6):
        light = flux if k != 4 else flux * 1e-6
        night = "2024-03-01" if k < 5 else "2024-03-02"
        write_frame(
            folder / "frames" / f"f{k}.fits", x + 0.4 * k, y, light, ny=NY, nx=NX, minute=k, seed=k,
            **{"DATE-OBS": f"{night}T21:{k:02d}:00.000"},
        )  # fmt: skip
    for k in range(3):
        write_frame(
            folder / "frames" / f"b{k}.fits", x, y, 0 * flux, ny=NY, nx=NX, minute=k, seed=50 + k,
            IMAGETYP="Bias Frame", EXPTIME=0.0,
        )  # fmt: skip
    (folder / "frames" / "broken.fits").write_bytes(b"SIMPLE  = what")
    (folder / "local.toml").write_text('kind = "local"\nworkers = 1\n')
    write_config(folder, more=f'[[target]]\nname = "T1"\nx = {x[2]}\ny = {y[2]}\n')
    return folder


@contextmanager
def monitored(config: Path, cluster: str) -> Iterator[tuple[pipeline.Run, list[str]]]:
    """A run that is monitored, and what the user is told of that."""
    said: list[str] = []
    with (
        Engine(cluster) as engine,
        pipeline.Run(load_config(config), engine, lambda event: None) as run,
        monitoring(run, say=said.append),
    ):
        yield run, said


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def settled(url: str) -> dict[str, Any]:
    """The state as it is told after this moment."""
    now, deadline = time.time(), time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            state: dict[str, Any] = json.loads(read(url))
        except urllib.error.HTTPError:
            state = {}
        if state.get("as_of_s", 0) > now and "products" in state:
            return state
        time.sleep(0.2)
    raise AssertionError(f"{url} does not follow the run")


def told(config: Path) -> dict[str, Any]:
    """What `nightloom status --json` says."""
    answer = CliRunner().invoke(app, ["status", str(config), "--json"])
    assert answer.exit_code == 0
    status: dict[str, Any] = json.loads(answer.stdout)
    return status


def page_of(config: Path, file: Path) -> dict[str, Any]:
    """The state in the page that `nightloom status --html` writes."""
    assert CliRunner().invoke(app, ["status", str(config), "--html", str(file)]).exit_code == 0
    line = next(row for row in file.read_text().splitlines() if "const EMBEDDED" in row)
    state: dict[str, Any] = json.loads(line.partition("=")[2].strip().rstrip(";"))
    return state


def test_page_json_and_metrics_agree_with_the_ledger_while_a_run_goes_on(archive: Path) -> None:
    config = archive / "nightloom.toml"
    with monitored(config, str(archive / "local.toml")) as (run, said):
        pipeline.scan(run)
        plan = pipeline.plan(run)
        pipeline.reduce(run, plan)
        url = dashboard.page_of(run.engine.dashboard)
        after_reduce, then = settled(f"{url}.json"), told(config)
        pipeline.gather(run, plan)
        pipeline.report(run, plan)
        pipeline.keep_expected(run, plan)
        at_end, now = settled(f"{url}.json"), told(config)
        page, metrics = read(url), read(url.replace("/nightloom", "/metrics"))
        going = read_run(run.root)
        meanwhile = page_of(config, archive / "meanwhile.html")
    for state, status in ((after_reduce, then), (at_end, now)):
        assert state["products"] == status["products"]
        assert state["frames"] == status["frames"]
    assert now["frames"]["measured"] == 5
    assert now["frames"]["unreadable"] + now["frames"]["quarantined"] == 2
    assert after_reduce["run_frames"] == {"done": 6, "left": 0}
    assert at_end["calendar"]["night"] == ["2024-03-01", "2024-03-02"]
    assert at_end["calendar"]["state"] == ["caveats", "caveats"]
    assert at_end["masters"]["n_bad"] == [0]
    assert at_end["masters"]["level_adu"][0] == pytest.approx(634, abs=2)  # 500 and a sky of 134
    assert any("f4.fits" in row["path"] for row in at_end["quarantined"])
    assert [worker["running"] for worker in at_end["workers"]] == [[]]
    assert "<title>nightloom: nights</title>" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # works offline
    families = {f.name: f for f in text_string_to_metric_families(metrics)}
    counted = {s.labels["state"]: s.value for s in families["nightloom_frames"].samples}
    assert counted == now["frames"]
    products: dict[str, dict[str, float]] = {}
    for sample in families["nightloom_products"].samples:
        products.setdefault(sample.labels["kind"], {})[sample.labels["state"]] = sample.value
    assert products == now["products"]
    assert families["nightloom_run_frames"].samples[0].value == 6
    assert going is not None
    assert going["pid"] == os.getpid()
    assert read_run(run.root) is None  # it is over
    assert said == [f"nights: {url}"]
    on_disk = state_on_disk(run.root, read_expected(run.root))
    for key in ("products", "frames", "nights", "calendar", "masters", "troubled", "quarantined"):
        assert on_disk[key] == at_end[key]
    afterwards = page_of(config, archive / "n.html")
    assert (meanwhile["ended"], afterwards["ended"]) == (False, True)
    assert meanwhile["run"] == at_end["run"]
    for key in ("products", "frames", "nights", "calendar", "masters", "troubled", "quarantined"):
        assert meanwhile[key] == afterwards[key] == at_end[key]


def test_what_a_run_made_before_it_was_killed_is_done(tmp_path: Path, archive: Path) -> None:
    """Its plan was written when the inputs of most were not there yet."""
    shutil.copytree(archive, tmp_path / "sky", ignore=shutil.ignore_patterns("products"))
    file = tmp_path / "sky" / "nightloom.toml"
    config = load_config(file)
    with (
        Engine(SERIAL) as engine,
        pipeline.Run(config, engine, lambda event: None) as run,
    ):
        pipeline.scan(run)
        pipeline.reduce(run, pipeline.plan(run))
    assert "stale" in state_on_disk(run.root, read_expected(run.root))["products"]["cube"]
    products = state_on_disk(run.root, pipeline.expected_now(config))["products"]
    assert products["cube"]["done"] == 2
    assert products == told(file)["products"]


def test_a_run_goes_on_without_its_page(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(client: object, *, run: str, page: str) -> None:
        raise AttributeError("http_application is gone")

    monkeypatch.setattr(dashboard, "install", broken)
    with monitored(write_config(tmp_path), str(archive / "local.toml")) as (run, said):
        run.make([recipe("a"), recipe("b")])
        time.sleep(2.5)
        run.make([recipe("c")])
    assert run.outcome.exit_code == 0
    assert run.outcome.n_made == 3
    assert len(said) == 1  # once
    assert "http_application is gone" in said[0]
    assert run.log_path.read_text().count("goes on without it") == 1


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """A scheduler and a worker that run already, as on a cluster; without Dask's own pages."""
    file, python = tmp_path / "scheduler.json", [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    source, tests = Path(dashboard.__file__).resolve().parents[2], Path(__file__).parent
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": f"{source}:{tests}"}
    server = subprocess.Popen(
        [*python, "scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1", "--port", "0",
         "--dashboard-address", "127.0.0.1:0", "--no-dashboard"],
        env=env, cwd=tmp_path, **quiet,
    )  # fmt: skip
    worker = subprocess.Popen(
        [*python, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"],
        env=env, cwd=tmp_path, **quiet,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    yield str(file)
    for process in (worker, server):
        process.terminate()
        process.wait(60)


def test_a_joined_scheduler_keeps_the_page_after_the_run(tmp_path: Path, scheduler: str) -> None:
    config = write_config(tmp_path)
    for name in ("a", "b"):
        with monitored(config, scheduler) as (run, said):
            run.make([recipe(name)])
        assert run.outcome.n_made == 1
        url = said[0].removeprefix("nights: ")
        state = json.loads(read(f"{url}.json"))
        assert (state["run"], state["ended"]) == (run.id, True)  # the last run's
        assert state["products"] == {"cube": {"done": 1}}
        assert read(url).startswith("<!doctype html>")
        metrics = read(url.replace("/nightloom", "/metrics"))
        assert metrics.count('nightloom_products{kind="cube",state="done"} 1.0') == 1


def test_a_run_that_broke_off_is_known(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    (tmp_path / "logs").mkdir()
    state = {"ended": False, "host": socket.gethostname(), "pid": os.getpid(), "as_of_s": 0.0}
    file = tmp_path / RUN_FILE
    file.write_text(json.dumps(state | {"as_of_s": time.time()}))
    assert read_run(tmp_path) is not None
    file.write_text(json.dumps(state | {"as_of_s": time.time() - 3600}))
    assert read_run(tmp_path) is None
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    file.write_text(json.dumps(state | {"as_of_s": time.time(), "pid": gone.pid}))
    assert read_run(tmp_path) is None
    file.write_text(json.dumps(state | {"as_of_s": time.time(), "host": "n1", "pid": gone.pid}))
    assert read_run(tmp_path) is not None


def test_nothing_to_make_is_not_read_anew(tmp_path: Path) -> None:
    """A run that has nothing to do starts no cluster and reads no product for a page."""
    with monitored(write_config(tmp_path), SERIAL) as (run, _):
        run.make([])
    state = json.loads((run.root / RUN_FILE).read_text())
    assert state["ended"]
    assert "products" not in state


def test_text_of_headers_can_not_end_the_script() -> None:
    page = nights_page({"reason": "</script><b>"}, version="1")
    assert "</script><b>" not in page
    assert "\\u003c/script>" in page
