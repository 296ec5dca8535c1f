"""Schema -> Zarr format 3: arrays with their dims, units and checksums; whole shards only."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product as every
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from nightloom.errors import ArchiveError
from nightloom.schema.cube import STAR, TIME, Variable
from nightloom.store.checked import CheckedStore, checked_store
from nightloom.store.manifest import REMEDY

SHARD_BYTES = 64 << 20
SHARD_TIMES = 512
CHUNK_APERTURES = 5

Arrays = Mapping[str, NDArray[Any]]


def shard_times(n_stars: int, n_apertures: int) -> int:
    """Times in one shard of a cube: 64 MiB of float32 flux, 512 at most."""
    bytes_a_time = 4 * max(1, n_stars) * max(1, n_apertures)
    return max(1, min(SHARD_TIMES, SHARD_BYTES // bytes_a_time))


def create_store(
    path: Path,
    variables: Sequence[Variable],
    sizes: Mapping[str, int],
    *,
    attributes: Mapping[str, Any],
    time_shard: int | None = None,
    star_chunk: int | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Lay out a Zarr group: every array with its fill value, nothing written yet.

    sizes: length of each dim. time_shard: times a shard holds (all of them, if None).
    star_chunk: stars of a chunk where the store is cut by stars and not by times.
    extra: further attributes by variable, such as the meanings of flags.
    """
    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    for variable in variables:
        shape = tuple(sizes[dim] for dim in variable.dims)
        shard = _shard_shape(variable, shape, time_shard, star_chunk)
        sharded = star_chunk is None and _is_sharded(variable)
        group.create_array(
            variable.name,
            shape=shape,
            chunks=_chunk_shape(shard) if sharded else shard,
            shards=shard if sharded else None,
            dtype=str if variable.dtype == "str" else np.dtype(variable.dtype),
            fill_value=variable.fill,
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
            dimension_names=variable.dims,
            attributes=_attributes(variable) | dict((extra or {}).get(variable.name, {})),
        )


def write_rows(path: Path, start: int, arrays: Arrays) -> None:
    """Write times from `start` on; start and length are those of whole shards, or of the end.

    Raises ValueError: a part of a shard would be written, which loses what another task wrote.
    """
    with _written_whole(path) as group:
        for name, values in arrays.items():
            array = _array(group, name)
            step = (array.shards or array.chunks)[0]
            stop = start + len(values)
            if start % step or (stop % step and stop != array.shape[0]):
                raise ValueError(f"{name}: times {start} to {stop} are no whole shards of {step}")
            array[start:stop] = values


def write_stars(path: Path, start: int, arrays: Arrays) -> None:
    """Write stars from `start` on, [time, star, ...], in whole chunks of a store cut by stars.

    Raises ValueError: a part of a chunk would be written.
    """
    with _written_whole(path) as group:
        for name, values in arrays.items():
            array = _array(group, name)
            step, stop = array.chunks[1], start + values.shape[1]
            if start % step or (stop % step and stop != array.shape[1]):
                raise ValueError(f"{name}: stars {start} to {stop} are no whole chunks of {step}")
            array[:, start:stop] = values


def write_whole(path: Path, arrays: Arrays) -> None:
    """Write arrays as a whole."""
    with _written_whole(path) as group:
        for name, values in arrays.items():
            array = _array(group, name)
            if array.shape != np.shape(values):
                raise ValueError(f"{name}: shape {np.shape(values)}, the store has {array.shape}")
            array[...] = values


def write_store(
    path: Path,
    variables: Sequence[Variable],
    arrays: Arrays,
    *,
    attributes: Mapping[str, Any],
    time_shard: int | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Create, fill and seal a store in one go; dims take their lengths from the arrays."""
    sizes: dict[str, int] = {}
    for variable in variables:
        for dim, length in zip(variable.dims, np.shape(arrays[variable.name]), strict=True):
            if sizes.setdefault(dim, length) != length:
                raise ValueError(f"{variable.name}: {dim} is {length}, elsewhere {sizes[dim]}")
    create_store(path, variables, sizes, attributes=attributes, time_shard=time_shard, extra=extra)
    write_whole(path, {variable.name: arrays[variable.name] for variable in variables})
    seal(path)


def seal(path: Path) -> None:
    """Consolidate the metadata, then check that every shard is there."""
    with warnings.catch_warnings():
        # Consolidated metadata works in every reader we know, but is not yet in the standard.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(path)
    missing = missing_shards(path)
    if missing:
        raise ArchiveError(where=str(path), why=f"{len(missing)} shards missing: {missing[0]}")


def missing_shards(path: Path) -> list[str]:
    """Files that the metadata promises and that are not there; a lost one would read as fill."""
    return _missing(path, zarr.open_group(path, mode="r"))


def _missing(path: Path, group: zarr.Group) -> list[str]:
    lost: list[str] = []
    for name, array in group.arrays():
        steps = array.shards or array.chunks
        counts = [math.ceil(n / step) for n, step in zip(array.shape, steps, strict=True)]
        for index in every(*(range(count) for count in counts)):
            file = path / name / "/".join(["c", *map(str, index)])
            if not file.exists():
                lost.append(str(file.relative_to(path)))
    return lost


def open_store(path: Path) -> CheckedStore:
    """A store to hand to a reader such as xarray: what is lost or damaged raises as it is read.

    Raises ArchiveError: its files are not all there, or its metadata can't be read.
    """
    store = checked_store(path)
    _group(path, store)
    return store


def read_attributes(path: Path) -> dict[str, Any]:
    """Attributes of a store.

    Raises ArchiveError: its files are not all there, or its metadata can't be read.
    """
    return dict(_group(path, checked_store(path)).attrs)


def read_arrays(
    path: Path, names: Sequence[str], *, stars: slice | None = None
) -> dict[str, NDArray[Any]]:
    """Arrays of a store as numpy: whole, or some stars of [time, star, ...].

    Raises ArchiveError: a shard is missing or damaged.
    """
    group = _group(path, checked_store(path))
    arrays: dict[str, NDArray[Any]] = {}
    for name in names:
        try:
            array = _array(group, name)
            values = np.asarray(array[...] if stars is None else array[:, stars])
            is_text = isinstance(values.dtype, np.dtypes.StringDType)
            arrays[name] = values.astype(object) if is_text else values
        except (ValueError, RuntimeError) as error:
            raise ArchiveError(
                where=f"{path}/{name}", why=f"is damaged: {error}", do=REMEDY
            ) from error
    return arrays


def _group(path: Path, store: CheckedStore) -> zarr.Group:
    """The group of a store.

    Raises ArchiveError: the metadata can't be read, or it promises files that are not there.
    """
    try:
        group = zarr.open_group(store, mode="r")
        # The manifest counts the files; a store without one is counted by its metadata.
        missing = [] if store.has_manifest else _missing(path, group)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ArchiveError(
            where=str(path), why=f"its metadata can't be read: {error}", do=REMEDY
        ) from error
    if missing:
        raise ArchiveError(where=f"{path}/{missing[0]}", why="is missing", do=REMEDY)
    return group


@contextmanager
def _written_whole(path: Path) -> Iterator[zarr.Group]:
    """A store to write to: chunks that hold nothing but the fill value are written too.

    So that what is there can be counted. Zarr takes this from its configuration when a store is
    opened; what was said when the array was created is not kept.
    """
    with zarr.config.set({"array.write_empty_chunks": True}):
        yield zarr.open_group(path, mode="r+")


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ArchiveError(where=f"{group.store_path}/{name}", why="is no array")
    return array


def _is_sharded(variable: Variable) -> bool:
    return len(variable.dims) == 3 and variable.dims[0] == TIME


def _shard_shape(
    variable: Variable, shape: tuple[int, ...], time_shard: int | None, star_chunk: int | None
) -> tuple[int, ...]:
    most = {TIME: time_shard, STAR: star_chunk}
    return tuple(
        max(1, min(length, most.get(dim) or length))
        for dim, length in zip(variable.dims, shape, strict=True)
    )


def _chunk_shape(shard: tuple[int, ...]) -> tuple[int, ...]:
    apertures = next(n for n in range(CHUNK_APERTURES, 0, -1) if shard[2] % n == 0)
    return (shard[0], shard[1], apertures)


def _attributes(variable: Variable) -> dict[str, Any]:
    attributes: dict[str, Any] = {"long_name": variable.meaning}
    if variable.unit:
        attributes["units"] = variable.unit
    return attributes
