"""Publishing: all at once or not at all; what is lost or damaged is named, never a number."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from nightloom import errors
from nightloom.config import PhotometrySection
from nightloom.errors import ArchiveError, NightloomError, TransientError
from nightloom.schema.cube import Variable
from nightloom.store.encodings import (
    create_store,
    missing_shards,
    read_arrays,
    write_rows,
    write_store,
)
from nightloom.store.fingerprint import digest_of, fingerprint
from nightloom.store.ledger import Expected, ledger, read_expected, write_expected
from nightloom.store.products import (
    Attempt,
    current,
    publish,
    published_fingerprint,
    read_attempt,
    work_folder,
    write_attempt,
    write_text,
)
from nightloom.store.work import begin_folder, discard, replacing, sweep

VARIABLES = (
    Variable("flux", ("time", "star", "aperture"), "float32", "electron", "flux"),
    Variable("reason", ("time",), "str", "", "why"),
    Variable("jd_utc", ("time",), "float64", "d", "time"),
)


def put(root: Path, product: str, mark: str, value: float) -> Path:
    with work_folder(root, product) as work:
        arrays = {
            "flux": np.full((6, 2, 10), value, np.float32),
            "reason": np.array(["é cloud"] * 6, dtype=object),
            "jd_utc": 2460000.5 + np.arange(6) / 7,
        }
        write_store(work / "cube.zarr", VARIABLES, arrays, attributes={"v": value}, time_shard=2)
        return publish(root, product, mark, work)


def test_publish_swaps_whole_versions(tmp_path: Path) -> None:
    put(tmp_path, "cube/F/N/R", "aaa", 1.0)
    reader = xr.open_zarr(current(tmp_path, "cube/F/N/R"), chunks=None, consolidated=True)
    put(tmp_path, "cube/F/N/R", "bbb", 2.0)
    assert published_fingerprint(tmp_path, "cube/F/N/R") == "bbb"
    assert float(reader["flux"][0, 0, 0]) == 1.0  # who had the old one open keeps it
    put(tmp_path, "cube/F/N/R", "aaa", 1.0)  # the same was made before: kept
    assert published_fingerprint(tmp_path, "cube/F/N/R") == "aaa"
    link = tmp_path / "cube/F/N/R/cube.zarr"
    assert not link.readlink().is_absolute()  # the products may be moved
    assert not list(tmp_path.rglob(".work-*"))


def test_failed_work_is_never_visible(tmp_path: Path) -> None:
    def fail() -> None:
        with work_folder(tmp_path, "cube/F/N/R") as work:
            (work / "cube.zarr").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert current(tmp_path, "cube/F/N/R") is None
    assert not list(tmp_path.rglob(".work-*"))


def test_sweep_takes_only_what_nobody_owns(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from nightloom.store.products import new_work_folder;"
        "new_work_folder(Path(sys.argv[1]), 'cube/dead')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    alive = tmp_path / "cube/alive" / f".work-{os.uname().nodename}-{os.getppid()}-x"
    other = tmp_path / "cube/alive" / ".work-another.host-1-x"
    alive.mkdir(parents=True)
    other.mkdir()
    assert sweep(tmp_path) == 1
    assert alive.exists()
    assert other.exists()


def test_text_and_floats_survive_zarr(tmp_path: Path) -> None:
    """Trap 38: no warning, strings and Julian dates read back to the bit."""
    put(tmp_path, "cube/F/N/R", "aaa", 1.0)
    dataset = xr.open_zarr(current(tmp_path, "cube/F/N/R"), chunks=None, consolidated=True)
    assert dataset["reason"].values.tolist() == ["é cloud"] * 6
    np.testing.assert_array_equal(dataset["jd_utc"].values, 2460000.5 + np.arange(6) / 7)
    assert dataset["flux"].attrs["units"] == "electron"


def test_lost_shard_is_named(tmp_path: Path) -> None:
    """Trap 36: a shard that is not there would read as fill."""
    path = put(tmp_path, "cube/F/N/R", "aaa", 1.0)
    (path / "flux/c/1/0/0").unlink()
    assert missing_shards(path) == ["flux/c/1/0/0"]
    with pytest.raises(ArchiveError, match="flux/c/1/0/0"):
        read_arrays(path, ["jd_utc"])


def test_flipped_bit_raises(tmp_path: Path) -> None:
    path = put(tmp_path, "cube/F/N/R", "aaa", 1.0) / "flux/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[10] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ArchiveError, match="flux"):
        read_arrays(path.parents[4], ["flux"])


def test_fill_is_only_where_all_is_fill(tmp_path: Path) -> None:
    """Trap 36: a chunk that holds nothing but the fill value is written all the same."""
    with work_folder(tmp_path, "cube/F/N/R") as work:
        store = work / "cube.zarr"
        sizes = {"time": 2, "star": 1, "aperture": 1}
        create_store(store, VARIABLES[:1], sizes, attributes={}, time_shard=1)
        write_rows(store, 0, {"flux": np.full((2, 1, 1), np.nan, np.float32)})
        assert missing_shards(store) == []


def test_part_of_a_shard_is_refused(tmp_path: Path) -> None:
    """Trap 35: two tasks in one shard lose each other's rows."""
    store = tmp_path / "cube.zarr"
    sizes = {"time": 8, "star": 1, "aperture": 1}
    create_store(store, VARIABLES[:1], sizes, attributes={}, time_shard=4)
    rows = {"flux": np.ones((2, 1, 1), np.float32)}
    with pytest.raises(ValueError, match="no whole shards"):
        write_rows(store, 4, rows)
    with pytest.raises(ValueError, match="no whole shards"):
        write_rows(store, 2, rows)


def test_full_disk_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransientError, match="No space left"):
        write_text(tmp_path / "a.json", "{}")
    assert not list(tmp_path.iterdir())


def test_attempt_round_trip_and_damage(tmp_path: Path) -> None:
    attempt = Attempt("aaa", "failed", "product", "why", caveats=("x",))
    write_attempt(tmp_path, "cube/F", attempt)
    assert read_attempt(tmp_path, "cube/F") == attempt
    (tmp_path / "cube/F/attempt.json").write_text("{")
    with pytest.raises(ArchiveError, match="damaged"):
        read_attempt(tmp_path, "cube/F")


def test_ledger_states(tmp_path: Path) -> None:
    put(tmp_path, "cube/done", "aaa", 1.0)
    put(tmp_path, "cube/old", "aaa", 1.0)
    write_attempt(tmp_path, "cube/bad", Attempt("ccc", "failed", "product", "no stars"))
    write_attempt(tmp_path, "cube/none", Attempt("ddd", "empty", reason="clouds"))
    expected = [
        Expected("cube/done", "aaa"),
        Expected("cube/old", "bbb"),
        Expected("cube/bad", "ccc"),
        Expected("cube/none", "ddd"),
        Expected("cube/new", "eee"),
        Expected("field/a", "fff", needs=("cube/bad",)),
        Expected("field/b", "fff", needs=("field/a",)),
        Expected("field/c", "fff", uses=("cube/bad", "cube/new")),
    ]
    write_expected(tmp_path, expected)
    assert read_expected(tmp_path) == expected
    states = ledger(tmp_path, expected).set_index("product")["state"].to_dict()
    assert states == {
        "cube/done": "done",
        "cube/old": "stale",
        "cube/bad": "failed",
        "cube/none": "empty",
        "cube/new": "waiting",
        "field/a": "blocked",
        "field/b": "blocked",
        "field/c": "waiting",
    }


def test_fingerprint_is_what_it_was() -> None:
    """A digest that changes by itself would make every archive anew."""
    inputs = (("a.fits", "100-abc"),)
    mark = fingerprint(inputs=inputs, settings=PhotometrySection(), version=1, kind="cube")
    assert mark == fingerprint(inputs=inputs, settings=PhotometrySection(), version=1, kind="cube")
    assert digest_of({"b": 1.5, "a": [1, "x", True]}) == "fc006318ae5c952d5e1e"
    with pytest.raises(TypeError, match="no stable text"):
        digest_of({"path": Path("a")})


@given(
    st.dictionaries(
        st.text(min_size=1), st.floats(allow_nan=False) | st.integers() | st.text(min_size=1)
    )
)
def test_fingerprint_ignores_order_and_empty_values(values: dict[str, object]) -> None:
    backwards = dict(reversed(values.items()))
    assert digest_of(values) == digest_of(backwards)
    assert digest_of({**values, "": None}) == digest_of({k: v for k, v in values.items() if k})


@pytest.mark.parametrize(
    "kind",
    [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, NightloomError)],
)
def test_every_error_crosses_processes(kind: type[NightloomError]) -> None:
    error = kind(where="a.fits", why="is cut", do="copy it again")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == "a.fits: is cut (copy it again)"


def test_work_that_was_taken_away_and_came_back_is_not_published(tmp_path: Path) -> None:
    """Zarr makes a folder anew that somebody removed: what was written before lacks then."""
    work = begin_folder(tmp_path / "cube/F/N/R")
    own = work / "own"
    write_text_in(own / "cube.html", "first half")
    discard(work)
    assert not work.exists()
    write_text_in(own / "cube.zarr" / "zarr.json", "second half")
    with pytest.raises(ArchiveError, match="given up"):
        publish(tmp_path, "cube/F/N/R", "ab12", own)
    assert current(tmp_path, "cube/F/N/R") is None


def write_text_in(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_files_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from nightloom.store.work import replacing;"
        "context = replacing(Path(sys.argv[1]) / 'attempt.json');"
        "context.__enter__().write_text('half'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert sweep(tmp_path) == 1
    assert not list(tmp_path.iterdir())


def test_what_is_broken_off_while_it_is_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")

    def broken_off() -> None:
        with replacing(file) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert file.read_text() == "old"
