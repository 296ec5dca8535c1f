"""The benchmarks run on tiny inputs, so that they don't rot; what they say is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_bench_frame(tmp_path: Path) -> None:
    told = run(
        "bench_frame.py", "--size", "320", "--stars", "60", "--measured", "25", "--rounds", "1",
        "--no-real", "--json", str(tmp_path / "figures.json"),
    )  # fmt: skip
    figures = json.loads((tmp_path / "figures.json").read_text())["synthetic_320"]
    steps = figures["steps_ms"]["ours"]
    assert set(steps) > {"read", "calibrate", "background", "detect", "fwhm", "align", "centroid"}
    assert all(ms >= 0 for ms in steps.values())
    assert 0 < figures["floor_ms"] < figures["total_ms"]
    for name in ("eloy", "photutils", "sep"):
        assert figures[f"ratio_{name}"] is None or figures[f"ratio_{name}"] > 0
        assert figures[f"ratio_{name}"] or name in told.split("not installed:")[1]


def test_bench_masters(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    run(
        "bench_masters.py", "--size", "128", "--frames", "5", "--rounds", "1",
        "--json", str(figures_file),
    )  # fmt: skip
    figures = json.loads(figures_file.read_text())["5"]
    assert figures["read_s"] > 0
    assert figures["ours_s"] > 0
    assert figures["ratio_numpy"] > 0
    assert figures["peak_mib"] >= 0


def test_bench_scale(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    told = run("bench_scale.py", "--quick", "--scratch", str(tmp_path), "--json", str(figures_file))
    (figures,) = json.loads(figures_file.read_text())
    assert figures["frames"] == 500
    assert figures["made"] == figures["again_kept"] == 7
    assert figures["scheduler_peak_bytes"] > figures["frames"]
    assert told.count("\n") == 3
    assert list(tmp_path.iterdir()) == [figures_file]
