"""What verify names: every file with a flipped bit, what is lost, cut, or not of its version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nightloom.errors import ArchiveError
from nightloom.schema.cube import Variable
from nightloom.store.encodings import open_store, read_arrays, read_attributes, write_store
from nightloom.store.manifest import read_manifest
from nightloom.store.products import (
    Attempt,
    current,
    products_on_disk,
    publish,
    work_folder,
    write_attempt,
)
from nightloom.store.tables import read_table, write_table
from nightloom.store.verify import forget, verify_product

VARIABLES = (
    Variable("flux", ("time", "star", "aperture"), "float32", "electron", "flux"),
    Variable("reason", ("time",), "str", "", "why"),
    Variable("jd_utc", ("time",), "float64", "d", "time"),
)
CUBE, PAGE = "cube/F/N/R", "report/F/R/all"
MARK = "ab" * 10
STORE = f".versions/{MARK}.zarr"


def put_cube(root: Path, *, mark: str = MARK) -> Path:
    """A cube of 3 shards with 2 inner chunks each, and a table beside it."""
    rng = np.random.default_rng(1)
    arrays = {
        "flux": rng.normal(size=(6, 2, 10)).astype(np.float32),
        "reason": np.array(["é cloud"] * 6, dtype=object),
        "jd_utc": 2460000.5 + np.arange(6) / 7,
    }
    attributes = {"product": CUBE, "fingerprint": mark}
    with work_folder(root, CUBE) as work:
        write_store(work / "cube.zarr", VARIABLES, arrays, attributes=attributes, time_shard=2)
        (work / "cube.ecsv").write_text("# %ECSV 1.0\n1.25 2.5\n")
        publish(root, CUBE, mark, work)
    write_attempt(root, CUBE, Attempt(mark, "done"))
    return root / CUBE / ".versions" / f"{mark}.zarr"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put_cube(tmp_path)
    with work_folder(tmp_path, PAGE) as work:
        (work / "report.html").write_text("<html><p>depth 1.23 %</p></html>\n")
        publish(tmp_path, PAGE, MARK, work)
    return tmp_path


def test_what_is_whole_has_no_flaw(root: Path) -> None:
    assert products_on_disk(root) == [CUBE, PAGE]
    for product in (CUBE, PAGE):
        found = verify_product(root, product)
        assert found.flaws == ()
        assert found.has_manifest
    n_files = sum(path.is_file() for path in (root / CUBE / STORE).rglob("*"))
    assert verify_product(root, CUBE).n_files == n_files + 1


def test_one_flipped_bit_in_any_file_is_named(root: Path) -> None:
    """Offsets at random, the last bytes of each file (a shard's index) included."""
    rng = np.random.default_rng(7)
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    files = [path for path in files if path.name != "attempt.json"]
    assert len(files) >= 11
    for file in files:
        whole = file.read_bytes()
        offsets = {0, len(whole) - 1, len(whole) - 20, *rng.integers(0, len(whole), 4).tolist()}
        for offset in offsets:
            damaged = bytearray(whole)
            damaged[offset] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            product = CUBE if CUBE in str(file) else PAGE
            flaws = verify_product(root, product).flaws
            assert str(file.relative_to(root / product)) in {flaw.file for flaw in flaws}
            if "/c/" in str(file):
                named = [f for f in flaws if f.chunk]
                assert {f.array for f in named} == {file.relative_to(root / CUBE / STORE).parts[0]}
                with pytest.raises(ArchiveError, match="verify --forget"):
                    xr.open_zarr(open_store(root / CUBE / STORE), chunks=None).load()
        file.write_bytes(whole)
    assert verify_product(root, CUBE).flaws == ()


def test_the_inner_chunk_of_a_shard_is_named(root: Path) -> None:
    file = root / CUBE / STORE / "flux/c/1/0/0"
    data = bytearray(file.read_bytes())
    index = np.frombuffer(bytes(data[-36:-4]), "<u8").reshape(2, 2)
    data[int(index[1, 0]) + 5] ^= 16  # in the second inner chunk of the second shard
    file.write_bytes(data)
    (flaw,) = verify_product(root, CUBE).flaws
    assert (flaw.array, flaw.chunk, flaw.why) == ("flux", "(1, 0, 1)", "its checksum differs")
    assert flaw.file == f"{STORE}/flux/c/1/0/0"
    dataset = xr.open_zarr(open_store(root / CUBE / STORE), chunks=None)
    assert np.isfinite(dataset["flux"][:, 0, 0].values).all()  # the others are still read
    with pytest.raises(ArchiveError, match=r"flux/c/1/0/0.*checksum.*nightloom run"):
        dataset["flux"][2, 0, 7].load()
    with pytest.raises(ArchiveError, match="flux/c/1/0/0"):
        read_arrays(root / CUBE / STORE, ["flux"])


def test_a_lost_shard_is_named_and_never_reads_as_fill(root: Path) -> None:
    """Trap 36, also where it is lost after the store was opened."""
    dataset = xr.open_zarr(open_store(root / CUBE / STORE), chunks=None)
    (root / CUBE / STORE / "flux/c/2/0/0").unlink()
    with pytest.raises(ArchiveError, match="flux/c/2/0/0: is missing"):
        dataset["flux"][5, 0, 0].load()
    for door in (open_store, read_attributes):
        with pytest.raises(ArchiveError, match="flux/c/2/0/0: is missing"):
            door(root / CUBE / STORE)
    flaws = verify_product(root, CUBE).flaws
    assert [(f.array, f.chunk, f.why) for f in flaws] == [("flux", "(2, 0, 0)", "is missing")]


@pytest.mark.parametrize("name", ["zarr.json", "flux/zarr.json", "jd_utc/c/0", "flux/c/0/0/0"])
def test_a_cut_file_is_named(root: Path, name: str) -> None:
    file = root / CUBE / STORE / name
    file.write_bytes(file.read_bytes()[:-40])
    assert f"{STORE}/{name}" in {flaw.file for flaw in verify_product(root, CUBE).flaws}
    with pytest.raises(ArchiveError, match=f"{name}: has .* bytes of .*verify --forget"):
        open_store(root / CUBE / STORE)


def test_what_was_made_without_a_manifest_is_still_checked(root: Path) -> None:
    (root / CUBE / f".versions/{MARK}.manifest").unlink()
    found = verify_product(root, CUBE)
    assert (found.flaws, found.has_manifest) == ((), False)
    (root / CUBE / STORE / "zarr.json").write_text("{")
    assert "is no JSON" in verify_product(root, CUBE).flaws[0].why
    with pytest.raises(ArchiveError, match="metadata can't be read"):
        open_store(root / CUBE / STORE)


def test_links_records_and_strangers_are_named(root: Path) -> None:
    write_attempt(root, PAGE, Attempt(MARK, "done"))
    (root / PAGE / "report.html").unlink()
    assert "is missing: the record says" in verify_product(root, PAGE).flaws[0].why
    (root / PAGE / "report.html").symlink_to(".versions/cc.html")
    assert "not there" in verify_product(root, PAGE).flaws[0].why
    (root / CUBE / "attempt.json").write_text('{"fingerprint"')
    (root / CUBE / STORE / "notes.txt").write_text("mine")
    assert {f.file for f in verify_product(root, CUBE).flaws} == {
        "attempt.json",
        f"{STORE}/notes.txt",
    }


def test_a_version_in_a_folder_of_another_name_is_named(root: Path) -> None:
    other = "cd" * 10
    shutil.move(root / CUBE / STORE, root / CUBE / f".versions/{other}.zarr")
    (root / CUBE / "cube.zarr").unlink()
    (root / CUBE / "cube.zarr").symlink_to(f".versions/{other}.zarr")
    told = " ".join(flaw.why for flaw in verify_product(root, CUBE).flaws)
    assert f"says fingerprint '{MARK}', not '{other}'" in told


def test_what_is_forgotten_is_made_again_whole(root: Path) -> None:
    store = root / CUBE / STORE
    whole = (store / "flux/c/0/0/0").read_bytes()
    (store / "flux/c/0/0/0").write_bytes(whole[:-1] + b"x")
    assert forget(root, verify_product(root, CUBE).flaws) == [CUBE]
    assert current(root, CUBE) is None
    assert verify_product(root, CUBE).flaws == ()  # nothing is published, nothing is wrong
    put_cube(root)
    assert (store / "flux/c/0/0/0").read_bytes() == whole
    assert verify_product(root, CUBE).flaws == ()


def test_publishing_again_replaces_what_was_damaged(root: Path) -> None:
    """The same fingerprint is kept where it is whole, and not where it is not."""
    file = root / CUBE / STORE / "flux/c/0/0/0"
    whole, before = file.read_bytes(), file.stat().st_ino
    put_cube(root)
    assert file.stat().st_ino == before
    file.write_bytes(whole[:-1] + b"x")
    put_cube(root)
    assert file.read_bytes() == whole
    assert verify_product(root, CUBE).flaws == ()


def test_a_damaged_manifest_is_named(root: Path) -> None:
    path = root / CUBE / f".versions/{MARK}.manifest"
    data = json.loads(path.read_text())
    data["files"].pop(".zarr/flux/c/0/0/0")
    path.write_text(json.dumps(data))
    with pytest.raises(ArchiveError, match="its checksum differs"):
        read_manifest(root / CUBE / STORE)
    assert verify_product(root, CUBE).flaws[0].file.endswith(".manifest")


def test_a_damaged_table_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "frames.parquet"
    write_table(path, pd.DataFrame({"x": np.arange(1000) * 1.5, "name": ["a", "b"] * 500}))
    whole = path.read_bytes()
    for offset in (100, 3000, len(whole) // 2, len(whole) - 3):
        damaged = bytearray(whole)
        damaged[offset] ^= 8
        path.write_bytes(damaged)
        with pytest.raises(ArchiveError, match="is damaged"):
            read_table(path)
    path.write_bytes(whole[:200])
    with pytest.raises(ArchiveError, match="is damaged"):
        read_table(path)
