"""Folders to FITS files by name and stat, as columns: an archive of millions is looked at whole."""

from __future__ import annotations

import glob
import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nightloom.errors import ConfigError, TransientError

LOOK_AGAIN = -1  # an mtime no file has: the next scan reads it again
_NAME = re.compile(r"[^.].*\.(?:fit|fits|fts)(?:\.(?:gz|bz2|fz))?", re.IGNORECASE | re.DOTALL)
_STAT_THREADS = 16  # on a network file system a stat is a round trip
_STATS_A_TASK = 256
_SLOW_STAT_S = 100e-6  # one of a local disk costs less than to hand it to a thread

Integers = NDArray[np.int64]


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


@dataclass(frozen=True, slots=True, eq=False)
class FoundFiles(Sequence[FoundFile]):
    """Files in order of root and path; one is an object only while it is looked at."""

    roots: tuple[str, ...]
    starts: tuple[int, ...]  # of the files of each root, and the end
    path: pa.Array
    size_bytes: Integers
    mtime_ns: Integers

    def __len__(self) -> int:
        return len(self.size_bytes)

    @overload
    def __getitem__(self, index: int) -> FoundFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[FoundFile]: ...
    def __getitem__(self, index: int | slice) -> FoundFile | list[FoundFile]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        root = int(np.searchsorted(self.starts, index, side="right")) - 1
        size_bytes, mtime_ns = int(self.size_bytes[index]), int(self.mtime_ns[index])
        return FoundFile(self.roots[root], self.path[index].as_py(), size_bytes, mtime_ns)


def find_files(roots: Sequence[str | Path], *, skip: Path) -> FoundFiles:
    """FITS files by name under folders or globs, sorted, each once.

    `skip` and hidden folders are left out, links are followed, no folder is entered twice.
    Raises ConfigError: a root that is not there. TransientError: a folder can't be read.
    """
    starts = [(root, start) for root, found in map(_starts, map(str, roots)) for start in found]
    # A file that is named itself may lie in a folder that is named too.
    taken = None if all(Path(start).is_dir() for _, start in starts) else set[str]()
    entered = {_identity(str(skip))} if skip.is_dir() else set()
    paths_of: dict[str, list[str]] = {}
    for root, start in starts:
        for folder, names in _walk(start, entered):
            if taken is not None:
                names = [name for name in names if folder + name not in taken]
                taken.update([folder + name for name in names])
            inside = folder.removeprefix(root).lstrip("/")
            paths_of.setdefault(root, []).extend([inside + name for name in names])
    ordered = sorted(root for root, paths in paths_of.items() if paths)
    columns = [_columns(root, paths_of.pop(root)) for root in ordered]
    counts = [len(sizes) for _, sizes, _ in columns]
    none = pa.array([], pa.large_string()), *np.zeros((2, 0), dtype=np.int64)
    path, size_bytes, mtime_ns = zip(none, *columns, strict=True)
    return FoundFiles(
        roots=tuple(ordered),
        starts=tuple(itertools.accumulate(counts, initial=0)),
        path=pa.concat_arrays(path),
        size_bytes=np.concatenate(size_bytes),
        mtime_ns=np.concatenate(mtime_ns),
    )


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


def _walk(start: str, entered: set[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
    """Folders with a slash behind, and the names of their FITS files; adds to `entered`."""
    if not Path(start).is_dir():
        folder, name = os.path.split(start)
        if _NAME.fullmatch(name):
            yield os.path.join(folder, ""), [name]  # noqa: PTH118
        return
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        names: list[str] = []
        folders: list[str] = []
        try:
            identity = _identity(folder)
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(".") or name == "lost+found":
                        continue
                    if entry.is_dir():
                        folders.append(entry.path)
                    elif _NAME.fullmatch(name):
                        names.append(name)
        except OSError as error:
            why = f"the folder can't be read: {error.strerror}"
            raise TransientError(where=folder, why=why, do="see to its permissions") from error
        yield os.path.join(folder, ""), sorted(names)  # noqa: PTH118
        waiting.extend(sorted(folders, reverse=True))


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 - a Path would cost more than the call
    return status.st_dev, status.st_ino


def _columns(root: str, paths: list[str]) -> tuple[pa.Array, Integers, Integers]:
    """Paths under a root in order, their sizes and mtimes."""
    paths.sort()
    tasks = (paths[i : i + _STATS_A_TASK] for i in range(0, len(paths), _STATS_A_TASK))
    stats = np.empty((2, len(paths)), dtype=np.int64)
    start = 0
    for some in _stats(partial(_stat, root), tasks):
        stats[:, start : start + len(some[0])] = some
        start += len(some[0])
    return pa.array(paths, pa.large_string()), stats[0], stats[1]


def _stats(
    stat: partial[tuple[list[int], list[int]]], tasks: Iterator[list[str]]
) -> Iterator[tuple[list[int], list[int]]]:
    """Sizes and mtimes of each task: one after the other, from the first slow one on in threads."""
    for paths in tasks:
        began = time.perf_counter()
        yield stat(paths)
        if time.perf_counter() - began > _SLOW_STAT_S * len(paths):
            break
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        yield from pool.map(stat, tasks)


def _stat(root: str, paths: list[str]) -> tuple[list[int], list[int]]:
    """Size and mtime; a file that is gone meanwhile, or a dead link, is left to its reading."""
    sizes: list[int] = []
    times: list[int] = []
    for path in paths:
        try:
            status = os.stat(f"{root}/{path}")  # noqa: PTH116
            sizes.append(status.st_size)
            times.append(status.st_mtime_ns)
        except OSError:
            sizes.append(0)
            times.append(LOOK_AGAIN)
    return sizes, times
