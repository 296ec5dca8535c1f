"""Folders of FITS files to the frame table; only files that are new or changed are read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nightloom.config import Config, Instrument
from nightloom.errors import FrameError, TransientError
from nightloom.frames.checks import CALIBRATED, check_file, check_frames, check_header
from nightloom.frames.clock import Findings
from nightloom.frames.fits import (
    Hdu,
    file_digest,
    header_digest,
    merged_cards,
    read_hdus,
)
from nightloom.frames.image_section import check_profile_sections, section_columns
from nightloom.frames.instrument import standard_values, suspect_columns
from nightloom.frames.rules import Rules, check_profiles, choose_rules
from nightloom.frames.walk import LOOK_AGAIN, FoundFile, FoundFiles, find_files
from nightloom.schema.frames import empty_frames, frames_from_rows

Instruments = tuple[tuple[str, Instrument], ...]
Row = dict[str, object]

FILES_A_CHUNK = 500


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The frame table and how it came about; `n_gone` rows are in it no more."""

    frames: pd.DataFrame
    n_files: int
    n_read: int
    n_unchanged: int
    n_gone: int


ReadChunk = Callable[[list[FoundFile]], list[Row]]
MapChunks = Callable[[ReadChunk, list[list[FoundFile]]], Iterable[list[Row]]]


def map_serially(read: ReadChunk, chunks: list[list[FoundFile]]) -> Iterator[list[Row]]:
    """One chunk after the other in this process."""
    return map(read, chunks)


def scan(
    config: Config,
    previous: pd.DataFrame,
    *,
    map_chunks: MapChunks = map_serially,
    reread: bool = False,
) -> ScanResult:
    """The frame table of the archive as it lies there now.

    previous: the last table, or an empty one. Rows of files whose size and mtime are the same
    are kept, unless `reread` says that the profiles changed. `map_chunks` is given a picklable
    function and yields its results in any order.
    Raises ConfigError: a root is not there, a profile makes no sense.
    """
    check_profiles(config.instrument)
    check_profile_sections(config.instrument)
    roots = [os.path.normpath(config.folder / name) for name in config.archive.frames]
    found = find_files(roots, skip=config.products_path)
    kept, to_read, n_known = _compare(found, previous, reread=reread)
    chunks = [to_read[i : i + FILES_A_CHUNK] for i in range(0, len(to_read), FILES_A_CHUNK)]
    read = partial(read_rows, instruments=tuple(config.instrument.items()))
    rows = [row for chunk in map_chunks(read, chunks) for row in chunk] if chunks else []
    if len(rows) != len(to_read):
        raise RuntimeError(f"{len(to_read)} files were to be read, {len(rows)} rows came back")
    return ScanResult(
        frames=_table(previous, kept, rows),
        n_files=len(found),
        n_read=len(rows),
        n_unchanged=len(kept),
        n_gone=len(previous) - n_known,
    )


def read_rows(files: Sequence[FoundFile], *, instruments: Instruments) -> list[Row]:
    """A row a file, in their order; what can't be read has a row with the reason."""
    merged: dict[tuple[str, str], Rules] = {}
    return [_read_row(file, instruments, merged) for file in files]


def _compare(
    found: FoundFiles, previous: pd.DataFrame, *, reread: bool
) -> tuple[NDArray[np.int64], list[FoundFile], int]:
    """Positions of the rows that hold still, the files to read, how many files have a row."""
    position = _positions(found, previous)
    size_bytes, mtime_ns, digest = (
        previous[name].array.take(position, allow_fill=True, fill_value=fill)
        for name, fill in (("size_bytes", -1), ("mtime_ns", LOOK_AGAIN), ("digest", ""))
    )
    same_size = np.asarray(size_bytes) == found.size_bytes
    is_modified = np.asarray(mtime_ns) != found.mtime_ns
    is_modified |= np.asarray(mtime_ns) == LOOK_AGAIN
    holds = same_size & ~is_modified & (not reread)
    to_read = []
    for k in np.flatnonzero(~holds).tolist():
        file = found[k]
        if same_size[k]:
            file = replace(file, digest_before=digest[k], is_modified=bool(is_modified[k]))
        to_read.append(file)
    return position[holds], to_read, int(np.count_nonzero(position >= 0))


def _positions(found: FoundFiles, previous: pd.DataFrame) -> NDArray[np.int64]:
    """Row of each file in the last table, -1 where it has none."""
    path = _one_chunk(pa.array(previous["path"]))
    root_of, roots = pd.factorize(previous["root"])
    number_of = {root: number for number, root in enumerate(roots)}
    positions = np.full(len(found), -1)
    for number, (start, stop) in enumerate(itertools.pairwise(found.starts)):
        mine = found.path.slice(start, stop - start)
        rows = np.flatnonzero(root_of == number_of.get(found.roots[number], -2))
        known = path if len(rows) == len(path) else path.take(pa.array(rows))
        if known.equals(mine):  # nearly always
            positions[start:stop] = rows
        else:
            places = pc.fill_null(pc.index_in(mine, value_set=known), -1).to_numpy()
            positions[start:stop] = np.where(places >= 0, rows[places], -1) if len(rows) else -1
    return positions


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return whole.cast(pa.large_string())


def _table(previous: pd.DataFrame, kept: NDArray[np.int64], rows: list[Row]) -> pd.DataFrame:
    if not rows and len(kept) == len(previous):
        return previous
    parts = [previous.iloc[kept]] if len(kept) else []
    if rows:
        parts.append(check_frames(frames_from_rows(rows)))
    if not parts:
        return empty_frames()
    return pd.concat(parts).sort_values(["root", "path"], ignore_index=True)


def _read_row(
    file: FoundFile, instruments: Instruments, merged: dict[tuple[str, str], Rules]
) -> Row:
    row: Row = {
        "root": file.root,
        "path": file.path,
        "size_bytes": file.size_bytes,
        "mtime_ns": file.mtime_ns,
    }
    findings: Findings = []
    try:
        row |= _readable(file, instruments, merged, findings)
    except FrameError as error:
        findings.append(("unreadable", error.why))
    except TransientError as error:
        findings.append(("unreadable", f"{error.why}: the next scan tries again"))
        row["mtime_ns"] = LOOK_AGAIN
    return row | suspect_columns(findings)


def _readable(
    file: FoundFile,
    instruments: Instruments,
    merged: dict[tuple[str, str], Rules],
    findings: Findings,
) -> Row:
    """Columns of a file whose headers can be read.

    Raises FrameError, TransientError: they can't.
    """
    path = Path(file.full_path)
    hdus = read_hdus(path)
    hdu = _image(hdus, findings)
    cards = merged_cards(hdus, hdu)
    row: Row = {"hdu": hdu.index, "ny": hdu.ny, "nx": hdu.nx}
    row["digest"] = _digest(file, path, hdus, hdu)
    if not hdu.shape:
        return row
    findings += check_file(hdus, hdu) + check_header(cards)
    rules, where = choose_rules(cards, instruments, merged), f"{file.path}[{hdu.index}]"
    row |= section_columns(
        cards, rules=rules, ny=hdu.ny, nx=hdu.nx, where=where, findings=findings,
        is_corrected=any(words.startswith(CALIBRATED) for _, words in findings),
    )  # fmt: skip
    try:
        row |= standard_values(
            cards,
            rules=rules,
            path=file.full_path,
            n_own_parts=file.path.count("/") + 2,  # with the last folder of the root
            where=where,
            findings=findings,
        )
    except FrameError as error:
        findings.append(("no_exposure", str(error)))
    return row


def _image(hdus: tuple[Hdu, ...], findings: Findings) -> Hdu:
    """The HDU with the image; the next best to tell what the file is where there is none."""
    for hdu in hdus:
        if hdu.is_2d:
            return hdu
    for hdu in hdus:
        if hdu.shape:
            findings.append(("not_2d", f"the image has the shape {hdu.shape}"))
            return hdu
    findings.append(("no_image", "no HDU holds an image"))
    return hdus[0]


def _digest(file: FoundFile, path: Path, hdus: tuple[Hdu, ...], hdu: Hdu) -> str:
    """Identity of what the file holds.

    The header's digest; where the file was written again with the same header and size, and no
    DATASUM vouches for its pixels, the file's digest goes with it.
    """
    digest = header_digest(hdus, hdu)
    if file.digest_before.partition(":")[0] != digest:
        return digest
    if not file.is_modified or "DATASUM" in hdu.raw:
        return file.digest_before
    return f"{digest}:{file_digest(path)}"
