"""Verbs that look after the products, on an archive that was run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom.archive import open_dataset
from nightloom.cli.app import app
from nightloom.errors import ArchiveError, ConfigError
from nightloom.store.products import Attempt, current, published_fingerprint, write_attempt

NY, NX, N_FRAMES = 140, 160, 6
CUBE = "cube/Test/2024-03-01/R"


def nightloom(*arguments: str, cwd: Path) -> Result:
    """A verb in this process, on the archive of a folder."""
    verb, *rest = arguments
    return CliRunner().invoke(app, [verb, "--config", str(cwd / "nightloom.toml"), *rest])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night of six frames with a target, run."""
    folder = tmp_path_factory.mktemp("upkeep")
    x, y, flux = star_field(16, ny=NY, nx=NX, seed=6)
    for k in range(N_FRAMES):
        write_frame(
            folder / "frames" / f"f{k}.fits", x + 0.4 * k, y, flux, ny=NY, nx=NX, minute=k, seed=k
        )
    config = write_config(folder, more=f'[[target]]\nname = "T1"\nx = {x[2]}\ny = {y[2]}\n')
    assert run(config, report=True).exit_code == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(made, tmp_path / "archive", symlinks=True)
    return tmp_path / "archive"


def test_verify_names_a_flipped_bit_and_run_makes_it_again(folder: Path) -> None:
    verify = ("verify", "--cluster", "serial")
    well = json.loads(nightloom(*verify, "--json", cwd=folder).stdout)
    assert well["flaws"] == []
    assert well["without_manifest"] == []
    assert well["products"] == 10  # the plate, which came out empty, has a record alone
    path = current(folder / "products", CUBE)
    assert path is not None
    file = path / "flux/c/0/0/0"
    whole = file.read_bytes()
    file.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    told = nightloom(*verify, cwd=folder)
    assert told.exit_code == 1
    assert "flux/c/0/0/0 (flux, chunk (0, 0, 0)) its checksum differs" in told.stderr
    assert "verify --forget" in told.stdout
    with pytest.raises(ArchiveError, match=r"flux/c/0/0/0.*verify --forget"):
        current_flux(folder)
    assert nightloom(*verify, "--forget", CUBE, cwd=folder).exit_code == 1
    again = nightloom("run", "--cluster", "serial", cwd=folder)
    assert "made 1, kept 8" in again.stdout  # what was made of it is as it was
    assert file.read_bytes() == whole
    assert nightloom(*verify, cwd=folder).exit_code == 0


def current_flux(folder: Path) -> object:
    path = current(folder / "products", CUBE)
    assert path is not None
    return open_dataset(path)["flux"].load()


def test_every_door_of_the_archive_names_what_is_damaged(folder: Path) -> None:
    """One byte of each store is changed in turn; no door gives a number from it."""
    config = folder / "nightloom.toml"
    archive = archive_of(config)
    doors = {
        "field/Test/R": lambda: archive.cube("Test").load(),
        "ensemble/Test/R": lambda: archive.lightcurves("Test").load(),
        "lightcurve/T1/R": lambda: archive.lightcurve("T1").load(),
        "reference/Test": lambda: archive.reference("Test").stack.load(),  # noqa: PLW0108
    }
    for product, door in doors.items():
        path = current(archive.root, product)
        assert path is not None
        name = "stack" if product.startswith("reference") else "flux"
        file = next(p for p in sorted((path / name).rglob("*")) if p.is_file() and "c" in p.parts)
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:])
        with pytest.raises(ArchiveError, match="verify --forget"):
            door()
        file.unlink()
        with pytest.raises(ArchiveError, match="is missing"):
            door()
        file.write_bytes(whole)
        (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes()[:-100])
        with pytest.raises(ArchiveError, match="bytes of"):
            door()


def test_verify_of_a_product_that_is_none(folder: Path) -> None:
    told = nightloom("verify", "cube/Test", "--cluster", "serial", cwd=folder)
    assert isinstance(told.exception, ConfigError)
    assert f"perhaps {CUBE}" in told.exception.do


def test_retry_tries_again_what_failed_and_nothing_else(folder: Path) -> None:
    root = folder / "products"
    fingerprint = published_fingerprint(root, CUBE)
    (root / CUBE / "cube.zarr").unlink()
    write_attempt(root, CUBE, Attempt(fingerprint, "failed", "product", "no stars"))
    run_it = ("--cluster", "serial")
    left = nightloom("run", *run_it, cwd=folder)
    assert left.exit_code == 1
    assert "no stars (tried before)" in left.stderr
    assert isinstance(nightloom("retry", cwd=folder).exception, ConfigError)
    done = nightloom("retry", "reference/Test", *run_it, cwd=folder)
    assert isinstance(done.exception, ConfigError)
    assert "is done, not failed" in done.exception.why
    again = nightloom("retry", "--failed", *run_it, cwd=folder)
    assert again.exit_code == 0
    assert f"tried again: {CUBE}\n" in again.stdout
    assert published_fingerprint(root, CUBE) == fingerprint
    write_attempt(root, CUBE, Attempt(fingerprint, "failed", "product", "no stars"))
    assert f"tried again: {CUBE}\n" in nightloom("retry", CUBE, *run_it, cwd=folder).stdout
    assert "nothing failed" in nightloom("retry", "--failed", *run_it, cwd=folder).stdout


def test_gc_says_what_goes_then_removes_it(folder: Path) -> None:
    config = folder / "nightloom.toml"
    text = config.read_text()
    config.write_text(text.replace('"T1"', '"T2"') + "[gather]\nmax_comparisons = 3\n")
    assert nightloom("run", "--cluster", "serial", cwd=folder).exit_code == 0
    before = sorted(folder.rglob("*"))
    dry = json.loads(nightloom("gc", "--keep", "0", "--dry-run", "--json", cwd=folder).stdout)
    assert sorted(folder.rglob("*")) == before
    # The old curves are in use yet: the light curve of T1 was made of them.
    assert {item["product"] for item in dry["removed"]} == {"report/index", "stars/Test"}
    lost = {item["product"] for item in dry["not_expected"]}
    assert "lightcurve/T1/R" in lost
    assert "lightcurve/T2/R" not in lost
    assert "to remove" in nightloom("gc", "--keep", "0", "--dry-run", cwd=folder).stdout
    done = json.loads(nightloom("gc", "--keep", "0", "--orphans", "--json", cwd=folder).stdout)
    assert "ensemble/Test/R" in {item["product"] for item in done["removed"]}
    assert not (folder / "products/lightcurve/T1").exists()
    assert nightloom("verify", "--cluster", "serial", cwd=folder).exit_code == 0
    again = nightloom("run", "--cluster", "serial", cwd=folder)
    assert "made 0" in again.stdout


def test_plan_says_what_a_run_would_make_and_writes_nothing(folder: Path) -> None:
    assert "nothing to make" in nightloom("plan", "--dry-run", cwd=folder).stdout
    config = folder / "nightloom.toml"
    config.write_text(config.read_text() + "[photometry]\nradii_px = [2.5]\n")
    before = sorted(folder.rglob("*"))
    told = json.loads(nightloom("plan", "--dry-run", "--json", cwd=folder).stdout)
    assert sorted(folder.rglob("*")) == before
    due = {line["kind"]: line for line in told["due"]}
    assert due["cube"]["n_frames"] == N_FRAMES
    assert "reference" not in due
    assert any("changed since it was made" in reason for reason in told["reasons"])
    assert 0 < told["bytes"] < told["free_bytes"]
    assert "core-hours" in nightloom("plan", "--dry-run", cwd=folder).stdout
