"""Bad input: each gets its message or its quarantine with a reason, nothing else suffers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from archives import MAIN, archive_of, run, star_field, write_config, write_frame
from nightloom.archive import open_archive
from nightloom.errors import ArchiveError, ConfigError
from nightloom.store.products import current

NY, NX = 150, 180


def nightloom(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, cwd=cwd,
        check=False, timeout=200,
    )  # fmt: skip


def frames(folder: Path, n: int, **more: object) -> None:
    x, y, flux = star_field(18, ny=NY, nx=NX, seed=5)
    for k in range(n):
        write_frame(
            folder / "frames" / f"f{k:02d}.fits", x + 0.3 * k, y, flux, ny=NY, nx=NX, minute=k,
            seed=k, **more,
        )  # fmt: skip


@pytest.fixture(scope="module")
def archive_with_trouble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good frames, and one of each kind of bad one."""
    folder = tmp_path_factory.mktemp("trouble")
    frames(folder, 8)
    raw = folder / "frames"
    (raw / "truncated.fits").write_bytes((raw / "f03.fits").read_bytes()[:30000])
    (raw / "no_fits.fits").write_text("this is no FITS file")
    (raw / "empty.fits").write_bytes(b"")
    nobody = np.zeros(0)
    size = {"ny": NY, "nx": NX}
    write_frame(raw / "no_stars.fits", nobody, nobody, nobody, minute=20, seed=90, **size)
    x, y, flux = star_field(18, ny=NY, nx=NX, seed=77)
    write_frame(raw / "other_field.fits", x, y, flux, minute=21, seed=91, **size)
    more = '[[target]]\nname = "Far"\nra = 10.0\ndec = 10.0\n[[target]]\nname = "Near"\n'
    x, y, _ = star_field(18, ny=NY, nx=NX, seed=5)
    write_config(folder, more=more + f"x = {x[4]}\ny = {y[4]}\n")
    return folder


def test_each_bad_frame_has_its_reason(archive_with_trouble: Path) -> None:
    outcome = run(archive_with_trouble / "nightloom.toml")
    archive = archive_of(archive_with_trouble / "nightloom.toml")
    frames = archive.frames.set_index("path")
    assert (frames["state"] == "measured").sum() == 8
    for name, state, reason in (
        ("truncated.fits", "quarantined", "ends before|truncated|cut"),
        ("no_fits.fits", "unreadable", "no FITS|not FITS|is no"),
        ("empty.fits", "unreadable", "empty"),
        ("no_stars.fits", "quarantined", "no stars found|no star"),
        ("other_field.fits", "quarantined", "does not align with the reference"),
    ):
        assert frames.loc[name, "state"] == state, name
        assert pytest.importorskip("re").search(reason, frames.loc[name, "reason"]), (
            name, frames.loc[name, "reason"],
        )  # fmt: skip
    assert not outcome.failed


def test_a_target_outside_has_its_message(archive_with_trouble: Path) -> None:
    config = archive_with_trouble / "nightloom.toml"
    run(config)
    archive = archive_of(config)
    with pytest.raises(ArchiveError, match=r"can't be placed|outside"):
        archive.lightcurve("Far")
    near = archive.lightcurve("Near").load()
    assert int((near["flags"] == 0).sum()) == 8
    assert np.isnan(near["bjd_tdb"].values).all()  # no direction, so no barycentre: said, not made
    assert archive.targets.set_index("target")["state"].to_dict() == {
        "Far": "empty",
        "Near": "done",
    }


def test_a_frame_of_numbers_that_are_none(tmp_path: Path) -> None:
    frames(tmp_path, 5)
    with fits.open(tmp_path / "frames" / "f00.fits") as hdus:
        header = hdus[0].header
    for key in ("BZERO", "BSCALE"):
        header.remove(key, ignore_missing=True)
    for name, value in (("nan", np.nan), ("same", 1000.0)):
        fits.writeto(
            tmp_path / "frames" / f"{name}.fits", np.full((NY, NX), value, np.float32), header
        )
    config = write_config(tmp_path)
    assert run(config).failed == {}
    states = archive_of(config).frames.set_index("path")
    assert states.loc["nan.fits", "state"] == "quarantined"
    assert "no pixel holds a number" in states.loc["nan.fits", "reason"]
    assert states.loc["same.fits", "state"] == "quarantined"
    assert "no stars" in states.loc["same.fits", "reason"]
    assert (states["state"] == "measured").sum() == 5


def test_a_night_of_nothing_is_empty_not_failed(tmp_path: Path) -> None:
    nobody = np.zeros(0)
    for k in range(3):
        write_frame(
            tmp_path / "frames" / f"f{k}.fits", nobody, nobody, nobody, ny=NY, nx=NX, minute=k,
            seed=k,
        )  # fmt: skip
    config = write_config(tmp_path)
    outcome = run(config)
    assert "no star" in outcome.failed["reference/Test"]
    assert outcome.exit_code == 1
    states = archive_of(config).ledger.set_index("product")["state"]
    assert states["reference/Test"] == "failed"
    assert states["stars/Test"] == "blocked"
    again = run(config)  # other frames may be there by now
    assert "no star" in again.failed["reference/Test"]


def test_misspelt_key_ends_with_usage(tmp_path: Path) -> None:
    frames(tmp_path, 1)
    write_config(tmp_path, more="[photometry]\nmax_star = 3\n")
    ended = nightloom("run", cwd=tmp_path)
    assert ended.returncode == 2
    assert "did you mean 'max_stars'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_misspelt_exclude_ends_with_usage(tmp_path: Path) -> None:
    frames(tmp_path, 1)
    config = write_config(tmp_path, more='[gather]\nexclude = ["backgroud > 3"]\n')
    with pytest.raises(ConfigError, match="backgroud"):
        run(config)


def test_no_frames_at_all(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    config = write_config(tmp_path)
    assert run(config).exit_code == 0
    assert archive_of(config).frames.empty
    assert nightloom("plan", cwd=tmp_path).stdout.startswith("no science frames")


def test_products_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such folder"):
        open_archive(tmp_path / "none")
    with pytest.raises(ArchiveError, match="holds no frame table"):
        open_archive(tmp_path)


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from nightloom.cli.app import main
sys.argv = ["nightloom", "run", "--cluster", "serial"]
main()
"""


def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    """The system refuses to write on: a clear end, nothing half-made, and the next run goes on."""
    frames(tmp_path / "before", 4)
    run(write_config(tmp_path / "before"))  # compiled kernels are on disk after this
    frames(tmp_path, 4)
    config = write_config(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, cwd=tmp_path, check=False,
        timeout=200,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    root = tmp_path / "products"
    assert current(root, "reference/Test") is None
    assert not list(root.rglob(".work-*"))
    assert run(config).exit_code == 0
    assert (archive_of(config).frames["state"] == "measured").all()


def test_scan_and_frames_as_json(archive_with_trouble: Path) -> None:
    run(archive_with_trouble / "nightloom.toml")
    answer = json.loads(nightloom("status", "--json", cwd=archive_with_trouble).stdout)
    assert answer["frames"]["measured"] == 8
    assert answer["products"]["cube"]["done"] == 1
    rows = json.loads(
        nightloom("frames", "--state", "quarantined", "--json", cwd=archive_with_trouble).stdout
    )
    assert {row["path"] for row in rows} == {
        "truncated.fits", "no_stars.fits", "other_field.fits"
    }  # fmt: skip
