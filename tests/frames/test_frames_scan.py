"""Folders to the frame table: what is found, read, kept, and what one bad file does to others."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nightloom.config import Config
from nightloom.errors import ConfigError
from nightloom.frames.checks import check_frames
from nightloom.frames.scan import FoundFile, Row, ScanResult, find_files, scan
from nightloom.schema.frames import COLUMN_NAMES, SUSPECT_BITS, empty_frames, frames_from_rows

WriteFrame = Callable[..., Path]
CARDS = (
    "DATE-OBS= '2020-01-01T02:00:00'",
    "EXPTIME =                 60.0",
    "IMAGETYP= 'LIGHT'",
    "OBJECT  = 'M 31'",
    "SITELAT =                 28.3",
    "SITELONG=                -16.5",
)


def _config(root: Path, *frames: str, **sections: object) -> Config:
    archive = {"frames": frames or (str(root),), "products": str(root / "products")}
    return Config(archive=archive, folder=root, **sections)


def _suspects(row: pd.Series) -> set[str]:
    return {name for name, bit in SUSPECT_BITS.items() if int(row["suspect"]) & bit}


def _scan(root: Path, previous: pd.DataFrame | None = None, **sections: object) -> ScanResult:
    return scan(_config(root, **sections), empty_frames() if previous is None else previous)


def test_what_is_a_frame_by_name(tmp_path: Path) -> None:
    for name in (
        "a.fit", "B.FITS", "c.fts.gz", "d.fits.BZ2", "e.fits.fz", "o4197842.10.fts",
        "sub/deep/f.Fit", "x.txt", "fits", "g.fits.txt", "._a.fits", ".hidden/h.fits",
        "products/master/i.fits", "lost+found/j.fits", "k.fits/l.fits", "xfits",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    found = find_files([tmp_path], skip=tmp_path / "products")
    assert [file.path for file in found] == [
        "B.FITS", "a.fit", "c.fts.gz", "d.fits.BZ2", "e.fits.fz", "k.fits/l.fits",
        "o4197842.10.fts", "sub/deep/f.Fit",
    ]  # fmt: skip
    status = (tmp_path / "a.fit").stat()
    assert found[1] == FoundFile(str(tmp_path), "a.fit", 5, status.st_mtime_ns)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    night = tmp_path / "night"
    night.mkdir()
    (night / "a.fits").touch()
    (night / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(night)
    (night / "dead.fits").symlink_to(tmp_path / "none")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.fits").touch()
    (night / "away").symlink_to(elsewhere)
    found = find_files([night], skip=tmp_path / "products")
    assert [file.path for file in found] == ["a.fits", "away/b.fits", "dead.fits"]
    everything = find_files([tmp_path], skip=tmp_path / "products")
    assert sorted(Path(file.path).name for file in everything) == ["a.fits", "b.fits", "dead.fits"]


def test_roots_that_are_globs_files_or_overlap(tmp_path: Path, write_frame: WriteFrame) -> None:
    for name in ("n1/a.fits", "n1/x/b.fits", "n2/c.fits", "o/d.fits"):
        write_frame(name, CARDS)
    frames = scan(_config(tmp_path, "n*"), empty_frames()).frames
    assert frames["path"].tolist() == ["n1/a.fits", "n1/x/b.fits", "n2/c.fits"]
    assert set(frames["root"]) == {str(tmp_path)}
    files = scan(_config(tmp_path, "*/*.fits"), empty_frames()).frames
    assert files["path"].tolist() == ["n1/a.fits", "n2/c.fits", "o/d.fits"]
    overlap = scan(_config(tmp_path, "n1", "n1/x", ".", "n1/a.fits"), empty_frames()).frames
    places = [str(Path(root) / path) for root, path in zip(overlap["root"], overlap["path"])]  # noqa: B905
    assert len(places) == len(set(places)) == 4
    for wrong in ("none", "none*"):
        with pytest.raises(ConfigError, match=wrong[:4]):
            scan(_config(tmp_path, wrong), empty_frames())


def test_a_row_holds_every_column(tmp_path: Path, write_frame: WriteFrame) -> None:
    path = write_frame("lights/a.fits", CARDS)
    result = _scan(tmp_path)
    assert (result.n_files, result.n_read, result.n_unchanged, result.n_gone) == (1, 1, 0, 0)
    assert tuple(result.frames.columns) == COLUMN_NAMES
    assert (result.frames.dtypes == empty_frames().dtypes).all()
    row = result.frames.iloc[0]
    assert (row["root"], row["path"]) == (str(tmp_path), "lights/a.fits")
    assert (row["size_bytes"], row["mtime_ns"]) == (5760, path.stat().st_mtime_ns)
    assert (row["ny"], row["nx"], row["hdu"], row["night"]) == (3, 4, 0, "2019-12-31")
    assert row["suspect"] == 0, row["reason"]


def test_only_what_changed_is_read(tmp_path: Path, write_frame: WriteFrame) -> None:
    for name in "abcd":
        write_frame(f"{name}.fits", [*CARDS, f"NAME    = '{name}'"])
    first = _scan(tmp_path)
    calls: list[list[str]] = []

    def spy(
        read: Callable[[list[FoundFile]], list[Row]], chunks: list[list[FoundFile]]
    ) -> Iterable[list[Row]]:
        calls.append([file.path for chunk in chunks for file in chunk])
        return map(read, chunks)

    again = scan(_config(tmp_path), first.frames, map_chunks=spy)
    assert calls == []
    assert (again.n_read, again.n_unchanged) == (0, 4)
    pd.testing.assert_frame_equal(again.frames, first.frames)
    (tmp_path / "b.fits").unlink()
    write_frame("c.fits", [*CARDS, "FILTER  = 'V'"])
    write_frame("e.fits", CARDS)
    changed = scan(_config(tmp_path), first.frames, map_chunks=spy)
    assert calls == [["c.fits", "e.fits"]]
    assert (changed.n_files, changed.n_read) == (4, 2)
    assert (changed.n_unchanged, changed.n_gone) == (2, 1)
    assert changed.frames["path"].tolist() == ["a.fits", "c.fits", "d.fits", "e.fits"]
    assert changed.frames["filter"].tolist() == ["", "V", "", ""]
    pd.testing.assert_frame_equal(changed.frames, _scan(tmp_path).frames)


def test_a_new_profile_reads_all_again(tmp_path: Path, write_frame: WriteFrame) -> None:
    write_frame("a.fits", [*CARDS, "TELESCOP= 'T1'"])
    first = _scan(tmp_path)
    config = _config(tmp_path, instrument={"mine": {"gain_e_per_adu": 2.0}})
    kept = scan(config, first.frames)
    assert np.isnan(kept.frames["gain_e_per_adu"][0])
    reread = scan(config, first.frames, reread=True)
    assert (reread.n_read, reread.frames["gain_e_per_adu"][0]) == (1, 2.0)
    assert reread.frames["digest"].tolist() == first.frames["digest"].tolist()
    with pytest.raises(ConfigError, match="no column"):
        _scan(tmp_path, instrument={"mine": {"keys": {"nonsense": "X"}}})


def test_pixels_written_again_change_the_digest(tmp_path: Path, write_frame: WriteFrame) -> None:
    path = write_frame("a.fits", CARDS)
    first = _scan(tmp_path).frames
    write_frame("a.fits", CARDS, pixels=b"\1" * 24)
    os.utime(path, ns=(1, 1))
    second = _scan(tmp_path, first).frames
    assert second["digest"][0].startswith(first["digest"][0] + ":")
    os.utime(path, ns=(2, 2))
    third = _scan(tmp_path, second).frames
    assert third["digest"][0] == second["digest"][0]
    write_frame("a.fits", CARDS, pixels=b"\2" * 24)
    os.utime(path, ns=(3, 3))
    assert _scan(tmp_path, third).frames["digest"][0] != second["digest"][0]
    vouched = [*CARDS, "DATASUM = '2503531142'"]
    write_frame("a.fits", vouched)
    before = _scan(tmp_path).frames
    os.utime(path, ns=(4, 4))
    assert _scan(tmp_path, before).frames["digest"][0] == before["digest"][0]


def test_one_bad_file_harms_no_other(tmp_path: Path, write_frame: WriteFrame) -> None:
    for i in range(90):
        write_frame(f"n{i:02}.fits", [*CARDS, f"NUMBER  = {i}"])
    bad: dict[str, tuple[str, str]] = {
        "empty.fits": ("unreadable", "the file is empty"),
        "text.fits": ("unreadable", "is no FITS file"),
        "short.fits": ("truncated", "bytes of"),
        "cut_header.fits": ("unreadable", "no END"),
        "cut.fits.gz": ("unreadable", "truncated"),
        "comma.fits": ("no_exposure", "comma.fits[0] EXPTIME: '12,5' is not a number"),
        "cube.fits": ("not_2d", "shape"),
    }
    (tmp_path / "empty.fits").write_bytes(b"")
    (tmp_path / "text.fits").write_text("not at all\n" * 500)
    whole = write_frame("short.fits", CARDS).read_bytes()
    (tmp_path / "short.fits").write_bytes(whole[: 2880 + 20])
    (tmp_path / "cut_header.fits").write_bytes(whole[:240])
    (tmp_path / "cut.fits.gz").write_bytes(gzip.compress(whole)[:60])
    write_frame("comma.fits", ["EXPTIME = 12,5", *CARDS])
    cube = whole.replace(b"NAXIS   =                    2", b"NAXIS   =                    3")
    cube = cube.replace(b"END".ljust(80), b"NAXIS3  = 2".ljust(80) + b"END".ljust(80), 1)
    (tmp_path / "cube.fits").write_bytes(cube[:2880] + bytes(2880))
    write_frame(
        "odd_card.fits", [*CARDS, b"OBSERVER= 'Jos\xe9 \xff\x00'", b"BROKEN  = 'x", "FILTER  = 'V'"]
    )
    frames = _scan(tmp_path).frames.set_index("path")
    assert len(frames) == 98
    good = frames.loc[[f"n{i:02}.fits" for i in range(90)]]
    assert not good["suspect"].any()
    assert good["digest"].nunique() == 90
    for name, (suspect, words) in bad.items():
        assert suspect in _suspects(frames.loc[name]), name
        assert words in frames.loc[name, "reason"], name
    assert frames.loc["odd_card.fits", "filter"] == "V"
    assert frames.loc["odd_card.fits", "suspect"] == 0
    assert "decimal_comma" in frames.loc["comma.fits", "reason"]


def test_a_failing_disk_is_asked_again(
    tmp_path: Path, write_frame: WriteFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frame("a.fits", CARDS)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(io, "FileIO", fail)
        failed = _scan(tmp_path)
    row = failed.frames.iloc[0]
    assert _suspects(row) == {"unreadable"}
    assert "Input/output error" in row["reason"]
    again = _scan(tmp_path, failed.frames)
    assert (again.n_read, again.frames["suspect"][0]) == (1, 0)


def test_a_dead_link_has_a_row(tmp_path: Path) -> None:
    (tmp_path / "dead.fits").symlink_to(tmp_path / "none")
    row = _scan(tmp_path).frames.iloc[0]
    assert _suspects(row) == {"unreadable"}
    assert "gone" in row["reason"]


def test_many_images_and_the_first_counts(tmp_path: Path, write_frame: WriteFrame) -> None:
    path = write_frame("a.fits", CARDS)
    extension = path.read_bytes()[:2880].replace(
        b"SIMPLE  =                    T", b"XTENSION= 'IMAGE   '          "
    )
    path.write_bytes(path.read_bytes() + extension + bytes(2880))
    row = _scan(tmp_path).frames.iloc[0]
    assert _suspects(row) == {"multi_hdu"}
    assert row["hdu"] == 0


def test_checks_of_headers(tmp_path: Path, write_frame: WriteFrame) -> None:
    expected = {
        "bayer.fits": (["BAYERPAT= 'RGGB'"], "colour"),
        "plate.fits": (["PLATEID = '0025'"], "not_ccd"),
        "film.fits": (["INSTRUME= 'Photographic Plate'"], "not_ccd"),
        "stack.fits": (["NCOMBINE= 12"], "not_ccd"),
        "single.fits": (["NCOMBINE= 1"], ""),
        "scale.fits": (["TIMESYS = 'TDB'"], "time_suspect"),
        "utc.fits": (["TIMESYS = 'UTC'"], ""),
        "done.fits": (["CALSTAT = 'BDF'"], ""),
    }
    for name, (cards, _) in expected.items():
        write_frame(name, [*CARDS, *cards])
    frames = _scan(tmp_path).frames.set_index("path")
    for name, (_, suspect) in expected.items():
        assert _suspects(frames.loc[name]) == ({suspect} if suspect else set()), name
    assert frames.loc["done.fits", "reason"] == "already calibrated by CALSTAT"


def test_checks_against_sun_and_site() -> None:
    base = {"image_type": "science", "site_lat_deg": 28.3, "site_lon_deg": -16.5}
    rows: list[dict[str, object]] = [
        base | {"jd_utc": 2458850.0},  # 12:00 UTC on the Canaries
        base | {"jd_utc": 2458850.0, "image_type": "flat"},
        base | {"jd_utc": 2458849.5},
        {"image_type": "science", "jd_utc": 2458850.0, "reason": "before"},
        base | {"jd_utc": 2442413.4},
        {"suspect": SUSPECT_BITS["unreadable"]},
    ]
    frames = frames_from_rows(rows)
    checked = check_frames(frames)
    assert [_suspects(row) for _, row in checked.iterrows()] == [
        {"daylight"}, set(), set(), {"no_site"}, {"time_suspect"}, {"unreadable"},
    ]  # fmt: skip
    assert checked["night"].tolist()[:4] == ["2019-12-31", "2019-12-31", "2019-12-31", "2020-01-01"]
    assert checked["reason"][3] == "before; no site"
    assert not frames["suspect"].to_numpy()[:5].any()
    assert (checked.dtypes == frames.dtypes).all()


def _in_a_pool(
    read: Callable[[list[FoundFile]], list[Row]], chunks: list[list[FoundFile]]
) -> Iterable[list[Row]]:
    pickle.loads(pickle.dumps(read))
    with get_context("spawn").Pool(2) as pool:
        return pool.map(read, chunks[::-1])


def test_chunks_cross_processes_and_come_in_any_order(
    tmp_path: Path, write_frame: WriteFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightloom.frames.scan.FILES_A_CHUNK", 3)
    for i in range(8):
        write_frame(f"{i}.fits", [*CARDS, f"FILTER  = '{i}'"])
    config = _config(tmp_path, instrument={"mine": {"match": {"FILTER": "[0-3]"}}})
    serial = scan(config, empty_frames())
    parallel = scan(config, empty_frames(), map_chunks=_in_a_pool)
    pd.testing.assert_frame_equal(serial.frames, parallel.frames)
    assert (serial.frames["instrument"] == "mine").sum() == 4
    with pytest.raises(RuntimeError, match="8 files were to be read, 6 rows"):
        scan(config, empty_frames(), map_chunks=lambda read, chunks: map(read, chunks[:2]))


def test_an_archive_without_frames(tmp_path: Path) -> None:
    result = _scan(tmp_path)
    assert (len(result.frames), result.n_files) == (0, 0)
    assert tuple(result.frames.columns) == COLUMN_NAMES


def test_slow_stats_in_threads_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(40):
        (tmp_path / f"n{k % 3}").mkdir(exist_ok=True)
        (tmp_path / f"n{k % 3}" / f"{k}.fits").write_bytes(b"x" * k)
    once = list(find_files([tmp_path], skip=tmp_path / "products"))
    monkeypatch.setattr("nightloom.frames.walk._SLOW_STAT_S", 0.0)
    monkeypatch.setattr("nightloom.frames.walk._STATS_A_TASK", 4)
    assert list(find_files([tmp_path], skip=tmp_path / "products")) == once
    assert {file.size_bytes for file in once} == set(range(40))


def test_rows_are_found_whatever_the_order_of_the_table(
    tmp_path: Path, write_frame: WriteFrame
) -> None:
    for name in ("a/1.fits", "a/2.fits", "b/1.fits", "b/3.fits"):
        write_frame(name, [*CARDS, f"NAME    = '{name}'"])
    config = _config(tmp_path, "a", "b")
    first = scan(config, empty_frames()).frames
    assert scan(config, first).frames is first  # so that it need not be written
    shuffled = first.iloc[[2, 0, 3]].reset_index(drop=True)
    again = scan(config, shuffled)
    assert (again.n_read, again.n_unchanged, again.n_gone) == (1, 3, 0)
    pd.testing.assert_frame_equal(again.frames, first)
