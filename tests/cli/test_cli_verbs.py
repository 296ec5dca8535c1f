"""The command as a user meets it: help, answers, progress, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archives import MAIN, star_field, write_config, write_frame
from nightloom.cli.app import app

NY, NX = 140, 160
VERBS = ("init", "scan", "plan", "reduce", "gather", "report", "run", "status", "frames", "explain",
         "verify", "retry", "gc", "doctor", "synth", "demo")  # fmt: skip


def nightloom(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, cwd=cwd,
        check=False, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames and their configuration, with a target."""
    folder = tmp_path_factory.mktemp("verbs")
    x, y, flux = star_field(16, ny=NY, nx=NX, seed=6)
    for k in range(6):
        write_frame(
            folder / "frames" / f"f{k}.fits", x + 0.4 * k, y, flux, ny=NY, nx=NX, minute=k, seed=k
        )
    write_config(folder, more=f'[[target]]\nname = "T1"\nx = {x[2]}\ny = {y[2]}\n')
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    told = CliRunner().invoke(app, [verb, "--help"])
    assert told.exit_code == 0
    assert f"Example: nightloom {verb}" in " ".join(told.stdout.split())


def test_run_prints_the_dashboard_first_and_then_makes_nothing(folder: Path) -> None:
    first = nightloom("run", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0].startswith("dashboard: http://127.0.0.1:")
    # Reference, stars, cube, field, ensemble, light curve and three pages; no plate to solve.
    assert "made 9, kept 0, nothing to make 1, failed 0" in first.stdout
    again = nightloom("run", "--config", "nightloom.toml", cwd=folder)
    assert "made 0, kept 9" in again.stdout
    assert "dashboard" not in again.stdout  # no cluster when nothing is to do
    logs = sorted((folder / "products" / "logs").glob("*.log"))
    assert len(logs) == 2
    assert "cube/Test/2024-03-01/R: done" in logs[0].read_text()


def test_stages_alone_from_what_is_on_disk(folder: Path, tmp_path: Path) -> None:
    config = str(folder / "nightloom.toml")
    for verb in ("scan", "reduce", "gather", "report"):
        ended = nightloom(verb, config, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    planned = json.loads(nightloom("plan", config, "--json", cwd=tmp_path).stdout)
    assert planned["nights"][0]["frames"] == 6
    assert any("flat" in text for text in planned["missing"])
    told = nightloom("explain", "cube/Test/2024-03-01/R", "-c", config, cwd=tmp_path).stdout
    assert "is up to date" in told
    assert "is no product" in nightloom("explain", "cube/x", "-c", config, cwd=tmp_path).stderr


def test_status_shows_what_a_changed_setting_makes_stale(folder: Path, tmp_path: Path) -> None:
    nightloom("run", "--cluster", "serial", cwd=folder)
    text = (folder / "nightloom.toml").read_text()
    text = text.replace('["frames"]', f'["{folder}/frames"]\nproducts = "{folder}/products"')
    (tmp_path / "nightloom.toml").write_text(text + "[photometry]\nradii_px = [2.5]\n")
    answer = json.loads(nightloom("status", "--json", cwd=tmp_path).stdout)
    assert {s: n for s, n in answer["products"]["cube"].items() if n} == {"stale": 1}
    assert answer["products"]["reference"]["done"] == 1
    assert answer["frames"]["measured"] == 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run",), 2, "no such file"),
        (("nonsense",), 2, "nonsense"),
        (("frames", "--state", "lost"), 2, "no such file"),
        (("run", "--cluster", "tcp://127.0.0.1:1"), 2, "no such file"),
        (("synth", "x", "--size", "large"), 2, "not width x height"),
    ],
)
def test_wrong_usage_is_said_without_a_traceback(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    ended = nightloom(*arguments, cwd=tmp_path)
    assert ended.returncode == code
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_init_then_plan(folder: Path, tmp_path: Path) -> None:
    assert nightloom("init", str(folder / "frames"), cwd=tmp_path).returncode == 0
    assert "Test" in nightloom("plan", cwd=tmp_path).stdout
    assert "is there already" in nightloom("init", "x", cwd=tmp_path).stderr
    assert not (tmp_path / "products").exists()  # plan changes nothing


def test_interrupted_keeps_what_is_done(folder: Path, tmp_path: Path) -> None:
    text = (folder / "nightloom.toml").read_text()
    (tmp_path / "nightloom.toml").write_text(text.replace('["frames"]', f'["{folder}/frames"]'))
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "run", "--cluster", "serial"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list((tmp_path / "products").rglob("reference.zarr")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "all done so far is kept" in told
    assert nightloom("run", "--cluster", "serial", cwd=tmp_path).returncode == 0
    assert not list((tmp_path / "products").rglob(".work-*"))


def test_status_follows_a_run_and_writes_the_page(folder: Path, tmp_path: Path) -> None:
    config = str(folder / "nightloom.toml")
    assert nightloom("run", "--cluster", "serial", cwd=folder).returncode == 0
    told = nightloom("status", config, "--watch", cwd=tmp_path)  # no run: what there is, once
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("no run goes on in ")
    assert "1 of 1 nights, 6 frames measured" in told.stdout
    logs = folder / "products" / "logs"
    finished = (logs / "run.json").read_text()
    with subprocess.Popen(["/bin/sleep", "600"]) as run:  # a run that goes on until it is killed
        state = json.loads(finished) | {"ended": False, "pid": run.pid, "as_of_s": time.time()}
        (logs / "run.json").write_text(json.dumps(state))
        watch = subprocess.Popen(
            [sys.executable, "-c", MAIN, "status", config, "--watch"], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert watch.stdout is not None
        first = watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=200)
        assert watch.returncode == 130
        assert first.strip()
        run.kill()
    page = tmp_path / "nights.html"
    assert nightloom("status", config, "--html", str(page), cwd=tmp_path).returncode == 0
    assert '"night": ["2024-03-01"]' in page.read_text()
    refused = nightloom("status", config, "--html", str(tmp_path / "no" / "n.html"), cwd=tmp_path)
    assert refused.returncode == 2
    assert "no/n.html" in refused.stderr


def test_profile_saves_what_dask_saw(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('kind = "local"\nworkers = 1\n')
    shutil.copytree(folder / "frames", tmp_path / "frames")
    shutil.copy(folder / "nightloom.toml", tmp_path)
    file = tmp_path / "profile.html"
    ended = nightloom("reduce", "--cluster", "one.toml", "--profile", str(file), cwd=tmp_path)
    assert ended.returncode == 2  # only `run` has it
    ended = nightloom("run", "--cluster", "one.toml", "--profile", str(file), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "bokeh" in file.read_text().lower()


def test_trace_says_where_the_time_of_a_run_went(folder: Path, tmp_path: Path) -> None:
    config = str(folder / "nightloom.toml")
    assert nightloom("run", "--cluster", "serial", cwd=folder).returncode == 0
    runs = sorted((folder / "products" / "logs").glob("*.trace.parquet"))
    first = runs[0].name.removesuffix(".trace.parquet")
    told = nightloom("status", config, "--trace", "--run", first, "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    summary = json.loads(told.stdout)
    assert summary["n_frames"] == 6
    steps = [row for row in summary["kinds"] if (row["product"], row["task"]) == ("cube", "step")]
    assert steps[0]["frames"] == 6
    assert steps[0]["wall_s"] > 0
    assert 0 <= summary["idle"] <= 1
    shown = nightloom("status", config, "--trace", "--run", first, cwd=tmp_path).stdout
    assert "Where the time went" in shown
    assert "Slowest frames" in shown
    refused = nightloom("status", config, "--trace", "--run", "never", cwd=tmp_path)
    assert refused.returncode == 3
    assert "no trace of never" in refused.stderr
