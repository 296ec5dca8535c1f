"""What gc takes and what it leaves: the current version, what it is made of, what is in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nightloom.errors import ArchiveError
from nightloom.schema.cube import Variable
from nightloom.store.encodings import open_store, write_store
from nightloom.store.gc import dead_work, old_versions, orphans, remove
from nightloom.store.products import (
    Attempt,
    current,
    products_on_disk,
    publish,
    set_aside,
    work_folder,
    write_attempt,
)

VARIABLES = (Variable("value", ("time",), "float64", "", "a number"),)
CUBE, FIELD = "cube/F/N/R", "field/F/R"


def put(root: Path, product: str, mark: str, inputs: list[list[str]] | None = None) -> Path:
    kind = product.split("/")[0]
    with work_folder(root, product) as work:
        attributes = {"inputs": inputs or []}
        arrays = {"value": np.full(1000, float(len(mark)))}
        write_store(work / f"{kind}.zarr", VARIABLES, arrays, attributes=attributes)
        (work / f"{kind}.ecsv").write_text(mark)
        path = publish(root, product, mark, work)
    write_attempt(root, product, Attempt(mark, "done"))
    now = 1_700_000_000 + len(list(path.parent.glob("*.zarr")))
    for file in path.parent.glob(f"{mark}.*"):
        os.utime(file, (now, now))
    return path


def marks(root: Path, product: str) -> set[str]:
    return {path.name.partition(".")[0] for path in (root / product / ".versions").iterdir()}


@pytest.mark.parametrize(("keep", "left"), [(0, "d"), (1, "cd"), (2, "bcd"), (9, "abcd")])
def test_the_current_version_and_the_newest_are_kept(tmp_path: Path, keep: int, left: str) -> None:
    for mark in "abcd":
        put(tmp_path, CUBE, mark)
    for item in old_versions(tmp_path, [CUBE], keep=keep):
        assert remove(tmp_path, item)
        assert item.n_files == 5  # two of metadata, a chunk, the table, the manifest
        assert item.n_bytes > 0
    assert marks(tmp_path, CUBE) == set(left)
    assert current(tmp_path, CUBE) == tmp_path / CUBE / ".versions/d.zarr"
    assert not list(tmp_path.rglob(".work-*"))


def test_what_a_current_product_is_made_of_is_kept(tmp_path: Path) -> None:
    """A page draws the versions that its light curve was made of."""
    put(tmp_path, CUBE, "old")
    put(tmp_path, FIELD, "f", inputs=[[CUBE, "old"]])
    put(tmp_path, CUBE, "new")
    assert old_versions(tmp_path, [CUBE, FIELD], keep=0) == []
    put(tmp_path, FIELD, "g", inputs=[[CUBE, "new"]])
    found = old_versions(tmp_path, products_on_disk(tmp_path), keep=0)
    assert {(item.product, item.paths[0].name) for item in found} == {
        (CUBE, "old.ecsv"),
        (FIELD, "f.ecsv"),
    }


def test_a_version_that_comes_into_use_meanwhile_is_put_back(tmp_path: Path) -> None:
    for mark in "ab":
        put(tmp_path, CUBE, mark)
    (item,) = old_versions(tmp_path, [CUBE], keep=0)
    put(tmp_path, CUBE, "a")  # a setting is turned back: a driver links the old version again
    assert not remove(tmp_path, item)
    assert marks(tmp_path, CUBE) == {"a", "b"}
    assert current(tmp_path, CUBE) == tmp_path / CUBE / ".versions/a.zarr"
    assert (tmp_path / CUBE / "cube.ecsv").read_text() == "a"


def test_an_open_reader_keeps_its_file_and_a_lazy_one_is_told(tmp_path: Path) -> None:
    old = put(tmp_path, CUBE, "a")
    lazy = xr.open_zarr(open_store(old), chunks=None)
    with (old / "value/c/0").open("rb") as file:
        put(tmp_path, CUBE, "bb")
        now = xr.open_zarr(open_store(current(tmp_path, CUBE)), chunks=None)  # type: ignore[arg-type]
        size = (old / "value/c/0").stat().st_size
        for item in old_versions(tmp_path, [CUBE], keep=0):
            assert remove(tmp_path, item)
        assert len(file.read()) == size
    with pytest.raises(ArchiveError, match="is missing"):
        lazy["value"].load()
    assert (now["value"].values == 2.0).all()


def test_what_is_damaged_and_what_dead_runs_left_goes(tmp_path: Path) -> None:
    set_aside(put(tmp_path, CUBE, "a"))
    put(tmp_path, CUBE, "b")
    code = (
        "import sys; from pathlib import Path;"
        "from nightloom.store.products import new_work_folder;"
        "(new_work_folder(Path(sys.argv[1]), 'cube/F/N/R') / 'x').write_text('half')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    alive = tmp_path / CUBE / f".work-{os.uname().nodename}-{os.getppid()}-x"
    alive.mkdir()
    found = [*dead_work(tmp_path), *old_versions(tmp_path, [CUBE], keep=5)]
    assert [item.why for item in found] == ["work of a dead run", "damaged"]
    assert all(remove(tmp_path, item) for item in found)
    assert alive.exists()
    assert [p for p in tmp_path.rglob("*") if "damaged" in p.name or "half" in p.name] == []


def test_products_that_nobody_expects_go_with_their_folders(tmp_path: Path) -> None:
    put(tmp_path, CUBE, "a")
    put(tmp_path, "lightcurve/Old/R", "b")
    put(tmp_path, "lightcurve/Old/R/below", "c")  # a product of its own
    (item,) = orphans(tmp_path, products_on_disk(tmp_path), [CUBE, "lightcurve/Old/R/below"])
    assert item.product == "lightcurve/Old/R"
    assert remove(tmp_path, item)
    assert products_on_disk(tmp_path) == [CUBE, "lightcurve/Old/R/below"]
    (item,) = orphans(tmp_path, products_on_disk(tmp_path), [CUBE])
    assert remove(tmp_path, item)
    assert not (tmp_path / "lightcurve").exists()
