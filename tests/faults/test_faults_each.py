"""Each fault of `scripts/faults.py` once, on a tiny archive whose cubes are still to be made."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nightloom.store.products import current

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "faults.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    return module


faults = load()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `undisturbed`, a reduced archive, and `start`, the same less its cubes."""
    base = tmp_path_factory.mktemp("faults")
    whole = base / "undisturbed"
    spec = faults.SynthSpec(n_nights=2, frames_per_night=8, ny=128, nx=128, n_stars=40)
    config = faults.write_archive(whole, spec)
    frames = whole / "frames"
    config.write_text(config.read_text().replace('frames = ["frames"]', f'frames = ["{frames}"]'))
    trial = faults.Trial(whole, "scan", 0.0, faults.random.Random(0))
    assert trial.start(*faults.SERIAL).wait(faults.WAIT_S) == 0
    trial.verb = "reduce"
    assert trial.start(*faults.SERIAL).wait(faults.WAIT_S) == 0
    start = base / "start"
    shutil.copytree(whole, start, ignore=shutil.ignore_patterns("frames", "cube"), symlinks=True)
    return base


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_nothing_is_lost_or_half_there(fault: object, base: Path) -> None:
    if fault.needs_root and os.geteuid() != 0:  # type: ignore[attr-defined]
        pytest.skip("needs root to mount")
    expected = faults.digests(base / "undisturbed" / "products")
    assert sum(name.startswith("cube/") for name in expected) == 2
    score = faults.Score("")
    faults.break_once(
        fault, base / "start", base / "broken", verb="reduce", expected=expected, work_s=1.0,
        seed=1, score=score,
    )  # fmt: skip
    assert not score.note
    assert score.n_equal == score.n_exit_as_said == score.n_struck == 1
    assert score.n_leftovers == score.n_half_visible == 0


def test_a_store_without_a_shard_is_seen_as_broken(base: Path) -> None:
    """The reader of the campaign can fail."""
    name = next(
        n for n in faults.digests(base / "undisturbed" / "products") if n.startswith("cube/")
    )
    path = current(base / "undisturbed" / "products", name)
    assert path is not None
    assert faults.is_whole(path)
    copy = base / "copy.zarr"
    shutil.copytree(path, copy)
    next(p for p in sorted(copy.rglob("c/*")) if p.is_file()).unlink()
    assert not faults.is_whole(copy)
