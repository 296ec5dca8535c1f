"""The same bits whatever runs them: serial, one process, two processes, another partition."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from archives import archive_of, digest, run, star_field, write_config, write_frame
from nightloom.image.align import apply

NY, NX, N_FRAMES = 160, 200, 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of a small field, one of them shifted by (+20, -13) px and turned by 30 degrees."""
    folder = tmp_path_factory.mktemp("bits")
    x, y, flux = star_field(22, ny=NY, nx=NX, seed=3)
    for k in range(N_FRAMES):
        moved = apply(matrix_of(k), x, y)
        write_frame(
            folder / "frames" / f"f{k:02d}.fits", *moved, flux, ny=NY, nx=NX, minute=k, seed=k
        )
    write_config(folder)
    return folder


def matrix_of(k: int) -> np.ndarray:
    """Truth: where frame k sees what frame 0 sees at (x, y)."""
    if k != 9:
        return np.array([[1.0, 0.0, 0.31 * k], [0.0, 1.0, -0.23 * k]])
    angle = np.radians(30.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([(NX - 1) / 2, (NY - 1) / 2])
    return np.column_stack([turn, centre - turn @ centre + np.array([20.0, -13.0])])


def copy_of(folder: Path, name: str) -> Path:
    other = folder.parent / f"{folder.name}-{name}"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("products"))
    return other / "nightloom.toml"


def test_serial_one_and_two_processes_make_the_same_bytes(folder: Path) -> None:
    serial = copy_of(folder, "serial")
    assert run(serial).exit_code == 0
    expected = digest(serial)
    assert any(product.startswith("cube/") for product in expected)
    for n in (1, 2):
        config = copy_of(folder, f"{n}")
        cluster = config.parent / "local.toml"
        cluster.write_text(f'kind = "local"\nworkers = {n}\n')
        assert run(config, cluster=str(cluster)).exit_code == 0
        assert digest(config) == expected


def test_a_moved_and_turned_frame_is_measured_where_it_is(folder: Path) -> None:
    """Trap 1: the tutorial applies the transform backwards."""
    config = copy_of(folder, "moved")
    assert run(config).exit_code == 0
    archive = archive_of(config)
    cube = archive.cube("Test").load()
    assert cube.sizes["time"] == N_FRAMES
    x, y, _ = star_field(22, ny=NY, nx=NX, seed=3)
    grid = int(archive.reference("Test").attributes["grid_of"][1:3])
    for k in range(N_FRAMES):
        truth = np.column_stack(apply(matrix_of(k), x, y))
        first = np.column_stack(apply(matrix_of(grid), x, y))
        stars = archive.reference("Test").stars
        at = [int(np.argmin(np.hypot(*(first - (s.x, s.y)).T))) for s in stars.itertuples()]
        inside = (truth[at] > 6).all(axis=1) & (truth[at] < (NX - 6, NY - 6)).all(axis=1)
        away = np.hypot(cube["x"].values[k] - truth[at, 0], cube["y"].values[k] - truth[at, 1])[
            inside
        ]
        assert inside.sum() >= 10
        assert away.max() < 0.1
    assert float(cube["rotation_deg"][9]) == pytest.approx(30.0, abs=0.05)
    # A star that left the turned frame has no flux there, and costs nobody an epoch.
    off = ~np.isfinite(cube["flux"].values[9]).any(axis=1)
    curves = archive.lightcurves("Test").load()
    stays = (~off).nonzero()[0]
    assert np.isfinite(curves["flux"].values[stays][:, 9]).sum() >= 10
