"""The trace of a run: readable while it goes on, after a kill, and when it ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nightloom.errors import ArchiveError
from nightloom.schema.trace import COLUMNS, TaskRecord
from nightloom.store import trace
from nightloom.store.trace import TraceWriter, read_trace, trace_runs

ROW = TaskRecord(
    "cube/a", "step", 3, "n1/f.fits", "tcp://1", "here", 1.0, 2.0, 0.5, 0.4, 10, 20, "done"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_columns_of_record_and_file_are_the_same() -> None:
    assert tuple(trace.SCHEMA.names) == COLUMNS


def test_rows_come_back_while_a_run_goes_on_and_when_it_ended(root: Path) -> None:
    writer = TraceWriter(root, "r1")
    for k in range(7):
        writer.add(replace(ROW, n_frames=k))
        if k in (2, 4):
            writer.flush()
    assert list(read_trace(root, "r1")["n_frames"]) == [0, 1, 2, 3, 4]
    writer.close()
    table = read_trace(root)
    assert list(table["n_frames"]) == list(range(7))
    assert table.iloc[1].to_dict() == {n: getattr(replace(ROW, n_frames=1), n) for n in COLUMNS}
    assert sorted(p.name for p in (root / "logs").iterdir()) == ["r1.trace.parquet"]
    assert pq.ParquetFile(root / "logs" / "r1.trace.parquet").num_row_groups == 3


def test_memory_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "ROWS_A_PART", 10)
    writer = TraceWriter(root, "r1")
    for _ in range(25):
        writer.add(ROW)
    assert len(read_trace(root)) == 20


def test_the_last_run_is_read_and_none_is_an_error(root: Path) -> None:
    with pytest.raises(ArchiveError, match="no trace"):
        read_trace(root)
    for name in ("20260102T000000-1", "20260101T000000-2"):
        writer = TraceWriter(root, name)
        writer.add(replace(ROW, host=name))
        writer.flush()
    assert trace_runs(root) == ["20260101T000000-2", "20260102T000000-1"]
    assert set(read_trace(root)["host"]) == {"20260102T000000-1"}
    with pytest.raises(ArchiveError, match="no trace of other"):
        read_trace(root, "other")


def test_a_run_without_tasks_leaves_nothing(root: Path) -> None:
    TraceWriter(root, "r1").close()
    assert not list((root / "logs").iterdir())
