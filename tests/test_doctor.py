"""The doctor on an archive that is well, and on what is wrong with others."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from archives import MAIN, run, star_field, write_config, write_frame
from nightloom import pipeline
from nightloom.config import load_config
from nightloom.doctor import Check, examine
from nightloom.engine.cluster import SERIAL, Engine
from nightloom.errors import RunError
from nightloom.plan.recipes import make_plan
from nightloom.store.filesystem import try_operations


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three frames at ra 120, dec +20, scanned; a catalogue of the other side of the sky."""
    x, y, flux = star_field(12, ny=100, nx=120, seed=1)
    for k in range(3):
        write_frame(
            tmp_path / "frames" / f"f{k}.fits", x, y, flux, ny=100, nx=120, minute=k, seed=k
        )
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(299, 301, 400), rng.uniform(-21, -19, 400)
    stars = Table({"ra": ra, "dec": dec, "mag": np.full(400, 12.0)}, meta={"epoch": 2016.0})
    stars.write(tmp_path / "far.ecsv", format="ascii.ecsv")
    stars["ra"], stars["dec"] = ra - 180, dec + 40
    stars.write(tmp_path / "near.ecsv", format="ascii.ecsv")
    return tmp_path


def scanned(folder: Path, *, catalogue: str) -> Path:
    path = write_config(folder, more=f'[catalog]\nfiles = ["{catalogue}"]\n')
    with Engine(SERIAL) as engine, pipeline.Run(load_config(path), engine, print) as made:
        pipeline.scan(made)
    return path


def checks(path: Path, *, cluster: str = SERIAL) -> dict[str, Check]:
    config = load_config(path)
    plan = make_plan(pipeline.read_frames(config.products_path), config)
    with Engine(cluster) as engine:
        return {check.name: check for check in examine(config, plan, engine)}


def test_all_is_well(archive: Path) -> None:
    path = scanned(archive, catalogue="near.ecsv")
    cluster = archive / "local.toml"
    cluster.write_text('kind = "local"\nworkers = 1\n')
    found = checks(path, cluster=str(cluster))
    assert {name: check for name, check in found.items() if check.state != "ok"} == {}
    assert found["workers see frames"].what == "3 files looked at from 1 workers"
    assert not list(archive.rglob(".work-*"))


def test_a_catalogue_of_elsewhere(archive: Path) -> None:
    path = scanned(archive, catalogue="far.ecsv")
    answer = subprocess.run(
        [sys.executable, "-c", MAIN, "doctor", str(path), "--cluster", SERIAL, "--json"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 1, answer.stderr
    failed = [check for check in json.loads(answer.stdout) if check["state"] == "fail"]
    assert [check["name"] for check in failed] == ["catalogue of Test"]
    assert failed[0]["what"].startswith("0 stars within")
    assert failed[0]["do"]


def test_frames_that_workers_can_not_see(archive: Path) -> None:
    path = scanned(archive, catalogue="near.ecsv")
    for file in (archive / "frames").iterdir():
        file.rename(file.with_suffix(".gone"))
    cluster = archive / "local.toml"
    cluster.write_text('kind = "local"\nworkers = 1\n')
    check = checks(path, cluster=str(cluster))["workers see frames"]
    assert check.state == "fail"
    assert "No such file" in check.what


def test_no_symlinks(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAT answers; `run` says so before it reads a frame."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    path = write_config(archive)
    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(RunError, match=r"can't symlink there: Operation not permitted") as error:
        run(path)
    assert "archive.products" in error.value.do
    check = checks(path)["symlink in products"]
    assert (check.state, "FAT" in check.do) == ("fail", True)
    assert not list(archive.rglob(".work-*"))


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert try_operations(tmp_path / "file" / "products")["write"] == "Not a directory"
