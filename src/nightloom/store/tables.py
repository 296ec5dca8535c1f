"""The tables of an archive as Parquet: every page has a checksum, a damaged one is no number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow

from nightloom.errors import ArchiveError, TransientError
from nightloom.store.work import replacing

_REMEDY = "delete it: nightloom run makes it again"


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table so that a reader sees the old one or the new, never a part.

    Raises TransientError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            table.to_parquet(temporary, write_page_checksum=True)
    except OSError as error:
        raise TransientError(where=str(path), why=f"can't be written: {error}") from error


def read_table(path: Path, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table, or some columns of it.

    Raises ArchiveError: it is damaged. FileNotFoundError: it is not there.
    """
    try:
        # Opened once: what takes its place meanwhile is another file.
        with path.open("rb") as file:
            return pd.read_parquet(
                file, columns=None if columns is None else list(columns),
                page_checksum_verification=True,
            )  # fmt: skip
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise ArchiveError(where=str(path), why=f"is damaged: {error}", do=_REMEDY) from error
