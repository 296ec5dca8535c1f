"""The trace of a run: rows as they come, in parts while it runs, one Parquet file when it ends."""

from __future__ import annotations

import shutil
import time
from dataclasses import astuple
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nightloom.errors import ArchiveError, TransientError
from nightloom.schema.trace import COLUMNS, TaskRecord
from nightloom.store.work import replacing

LOGS = "logs"
SUFFIX = ".trace.parquet"
PARTS = ".trace"  # folder of the parts of a run that goes on, or was killed
ROWS_A_PART = 5000
PART_EVERY_S = 30.0
SCHEMA = pa.schema(
    [
        ("product", pa.string()), ("kind", pa.string()), ("n_frames", pa.int64()),
        ("first_frame", pa.string()), ("worker", pa.string()), ("host", pa.string()),
        ("queued_s", pa.float64()), ("started_s", pa.float64()), ("seconds", pa.float64()),
        ("cpu_s", pa.float64()), ("bytes_read", pa.int64()), ("peak_bytes", pa.int64()),
        ("outcome", pa.string()),
    ]
)  # fmt: skip


class TraceWriter:
    """The trace of one run; memory bounded, readable at any time by `read_trace`."""

    def __init__(self, root: Path, run: str) -> None:
        self._path = root / LOGS / f"{run}{SUFFIX}"
        self._folder = root / LOGS / f"{run}{PARTS}"
        self._rows: list[TaskRecord] = []
        self._n_parts = 0
        self._written = time.monotonic()

    def add(self, record: TaskRecord) -> None:
        """Keep a row; written with others, after half a minute at the latest."""
        self._rows.append(record)
        late = time.monotonic() - self._written > PART_EVERY_S
        if late or len(self._rows) >= ROWS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Write what is kept as a part."""
        self._written = time.monotonic()
        if not self._rows:
            return
        columns = list(zip(*(astuple(row) for row in self._rows), strict=True))
        table = pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=SCHEMA)
        try:
            self._folder.mkdir(exist_ok=True)
            part = self._folder / f"{self._n_parts:05d}.parquet"
            with replacing(part) as temporary:
                pq.write_table(table, temporary)
        except OSError as error:
            raise _cannot_write(self._folder, error) from error
        self._n_parts += 1
        self._rows = []

    def close(self) -> None:
        """Join the parts, one row group each, and show them as one file."""
        self.flush()
        if not self._n_parts:
            return
        try:
            with (
                replacing(self._path) as temporary,
                pq.ParquetWriter(temporary, SCHEMA) as writer,
            ):
                for part in _parts(self._folder):
                    writer.write_table(pq.read_table(part))
            shutil.rmtree(self._folder, ignore_errors=True)
        except OSError as error:
            raise _cannot_write(self._path, error) from error


def trace_runs(root: Path) -> list[str]:
    """Runs that left a trace, the oldest first."""
    folder = root / LOGS
    whole = {path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}")}
    parts = {path.name.removesuffix(PARTS) for path in folder.glob(f"*{PARTS}")}
    return sorted(name for name in whole | parts if not name.startswith("."))


def read_trace(root: Path, run: str | None = None) -> pd.DataFrame:
    """A row a task of a run, as far as it got; of the last run, if none is named.

    Raises ArchiveError: there is no such trace.
    """
    runs = trace_runs(root)
    name = run or (runs[-1] if runs else "")
    if name not in runs:
        raise ArchiveError(
            where=str(root / LOGS), why=f"no trace of {name or 'any run'}", do="see logs/"
        )
    whole = root / LOGS / f"{name}{SUFFIX}"
    files = [whole] if whole.exists() else _parts(root / LOGS / f"{name}{PARTS}")
    tables = [pq.ParquetFile(file).read() for file in files]
    table: pd.DataFrame = pa.concat_tables([SCHEMA.empty_table(), *tables]).to_pandas()
    return table


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _cannot_write(path: Path, error: OSError) -> TransientError:
    return TransientError(
        where=str(path),
        why=f"can't be written: {error.strerror or error}",
        do="free space or rights",
    )
