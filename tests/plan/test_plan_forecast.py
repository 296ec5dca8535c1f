"""What a run would cost, against products that were made; and when a disk is too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom import pipeline
from nightloom.config import load_config
from nightloom.errors import RunError
from nightloom.plan.forecast import Forecast, Room, check_room, forecast, room_at
from nightloom.plan.recipes import make_plan

NY, NX, N_FRAMES = 140, 160, 6
LINE = Forecast("cube", 1, 10, n_bytes=1000, n_files=20, core_hours=1.0)


def test_room_is_refused_where_half_does_not_fit_and_warned_of_where_all_does_not() -> None:
    assert check_room([LINE], Room(1001, 100), where="p") == ""
    assert "are to be written" in check_room([LINE], Room(999, None), where="p")
    with pytest.raises(RunError, match="free space"):
        check_room([LINE, LINE], Room(999, None), where="p")
    with pytest.raises(RunError, match="20 files are to be written, 19 can be"):
        check_room([LINE], Room(10**9, 19), where="p")
    assert check_room([], Room(0, 0), where="p") == ""


def test_the_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert room_at(tmp_path / "a" / "b").n_bytes == pytest.approx(
        room_at(tmp_path).n_bytes, rel=0.1
    )


def test_estimates_are_near_what_is_written(tmp_path: Path) -> None:
    """With the true number of stars and the compression measured, bytes are right within 2."""
    x, y, flux = star_field(16, ny=NY, nx=NX, seed=6)
    for k in range(N_FRAMES):
        write_frame(
            tmp_path / "frames" / f"f{k}.fits", x + 0.4 * k, y, flux, ny=NY, nx=NX, minute=k, seed=k
        )
    path = write_config(tmp_path, more=f"[photometry]\nmax_stars = {len(x)}\n")
    config = load_config(path)
    root = config.products_path
    plan = make_plan(pipeline.look(config).frames, config)
    due = [recipe.product for recipe in pipeline.all_recipes(root, plan, config)]
    before = {line.kind: line for line in forecast(root, plan, due, config)}
    assert before["cube"].n_frames == N_FRAMES
    assert before["cube"].core_hours > 0
    assert run(path, report=True).exit_code == 0
    after = {line.kind: line for line in forecast(root, plan, due, config)}
    for kind in ("cube", "field", "ensemble", "reference"):
        files = [f for f in (archive_of(path).root / kind).rglob("*") if f.is_file()]
        written = sum(f.stat().st_size for f in files if not f.is_symlink())
        assert written / 2 < after[kind].n_bytes < 2 * written, kind
        n_there = sum(1 for _ in (root / kind).rglob("*"))
        assert n_there / 3 < after[kind].n_files < 3 * n_there, kind
