"""Folders of FITS files to the frame table; only files that are new or changed are read."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from nightloom.config import Config, Instrument
from nightloom.errors import ConfigError, FrameError, TransientError
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
from nightloom.schema.frames import empty_frames, frames_from_rows

Instruments = tuple[tuple[str, Instrument], ...]
Row = dict[str, object]

FILES_A_CHUNK = 500
_NAME = re.compile(r"[^.].*\.(?:fit|fits|fts)(?:\.(?:gz|bz2|fz))?", re.IGNORECASE | re.DOTALL)
_STAT_THREADS = 16  # on a network file system a stat is a round trip
_STATS_A_TASK = 256
_LOOK_AGAIN = -1  # an mtime no file has: the next scan reads it again


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file by name and stat; `digest_before` where a row of the same size is known."""

    root: str
    path: str
    size_bytes: int
    mtime_ns: int
    digest_before: str = ""
    is_modified: bool = False

    @property
    def full_path(self) -> str:
        return f"{self.root}/{self.path}"


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
    kept, to_read = _compare(found, previous, reread=reread)
    chunks = [to_read[i : i + FILES_A_CHUNK] for i in range(0, len(to_read), FILES_A_CHUNK)]
    read = partial(read_rows, instruments=tuple(config.instrument.items()))
    rows = [row for chunk in map_chunks(read, chunks) for row in chunk] if chunks else []
    if len(rows) != len(to_read):
        raise RuntimeError(f"{len(to_read)} files were to be read, {len(rows)} rows came back")
    names = {(file.root, file.path) for file in found}
    return ScanResult(
        frames=_table(previous, kept, rows),
        n_files=len(found),
        n_read=len(rows),
        n_unchanged=len(kept),
        n_gone=len(set(zip(previous["root"], previous["path"], strict=True)) - names),
    )


def find_files(roots: Sequence[str | Path], *, skip: Path) -> list[FoundFile]:
    """FITS files by name under folders or globs, sorted, each once.

    `skip` and hidden folders are left out, links are followed, no folder is entered twice.
    Raises ConfigError: a root that is not there. TransientError: a folder can't be read.
    """
    names: dict[str, str] = {}  # full path -> root
    entered = {_identity(str(skip))} if skip.is_dir() else set()
    for pattern in map(str, roots):
        root, starts = _starts(pattern)
        for start in starts:
            for full_path in _walk(start, entered):
                names.setdefault(full_path, root)
    ordered = sorted((root, path.removeprefix(root).lstrip("/")) for path, root in names.items())
    tasks = [ordered[i : i + _STATS_A_TASK] for i in range(0, len(ordered), _STATS_A_TASK)]
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        return [file for task in pool.map(_stat, tasks) for file in task]


def read_rows(files: Sequence[FoundFile], *, instruments: Instruments) -> list[Row]:
    """A row a file, in their order; what can't be read has a row with the reason."""
    merged: dict[tuple[str, str], Rules] = {}
    return [_read_row(file, instruments, merged) for file in files]


def _starts(pattern: str) -> tuple[str, list[str]]:
    """The folder that paths of a root are relative to, and the folders or files to look at."""
    if not glob.has_magic(pattern) or os.path.exists(pattern):  # noqa: PTH110
        matches, root = [pattern], pattern
    else:
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        parts = Path(pattern).parts
        root = str(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts)))
    matches = [match for match in matches if Path(match).exists()]
    if not matches:
        why = "nothing is there by this name"
        raise ConfigError(where=f"archive.frames: {pattern}", why=why, do="mend the path")
    if root == pattern and Path(root).is_file():
        root = str(Path(root).parent)
    return root, matches


def _walk(start: str, entered: set[tuple[int, int]]) -> Iterator[str]:
    """Full paths of FITS files under a folder, or the file itself; adds to `entered`."""
    if not Path(start).is_dir():
        if _NAME.fullmatch(Path(start).name):
            yield start
        return
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        try:
            identity = _identity(folder)
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            folders = [entry.path for entry in found if _is_folder(entry)]
        except OSError as error:
            why = f"the folder can't be read: {error.strerror}"
            raise TransientError(where=folder, why=why, do="see to its permissions") from error
        for entry in found:
            if _NAME.fullmatch(entry.name) and entry.path not in folders:
                yield entry.path
        waiting.extend(reversed(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.name != "lost+found" and entry.is_dir()


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 - a Path would cost more than the call
    return status.st_dev, status.st_ino


def _stat(names: list[tuple[str, str]]) -> list[FoundFile]:
    """Size and mtime; a file that is gone meanwhile, or a dead link, is left to its reading."""
    files = []
    for root, path in names:
        try:
            status = os.stat(f"{root}/{path}")  # noqa: PTH116
            size_bytes, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:
            size_bytes, mtime_ns = 0, _LOOK_AGAIN
        files.append(FoundFile(root, path, size_bytes, mtime_ns))
    return files


def _compare(
    found: list[FoundFile], previous: pd.DataFrame, *, reread: bool
) -> tuple[list[int], list[FoundFile]]:
    """Positions of the rows of `previous` that hold still, and the files to read."""
    names = ("root", "path", "size_bytes", "mtime_ns", "digest")
    columns = [previous[name].tolist() for name in names]
    known = {row[:2]: (i, *row[2:]) for i, row in enumerate(zip(*columns, strict=True))}
    kept, to_read = [], []
    for file in found:
        position, size_bytes, mtime_ns, digest = known.get((file.root, file.path), (-1, -1, -1, ""))
        same_size = position >= 0 and size_bytes == file.size_bytes
        is_modified = mtime_ns != file.mtime_ns or mtime_ns == _LOOK_AGAIN
        if same_size and not is_modified and not reread:
            kept.append(position)
        elif same_size:
            to_read.append(replace(file, digest_before=digest, is_modified=is_modified))
        else:
            to_read.append(file)
    return kept, to_read


def _table(previous: pd.DataFrame, kept: list[int], rows: list[Row]) -> pd.DataFrame:
    parts = [previous.iloc[kept]] if kept else []
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
        row["mtime_ns"] = _LOOK_AGAIN
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
