"""The nights of a field and filter joined into one store, cut by stars: a star is one read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.engine.recipe import Made, Recipe
from nightloom.errors import ProductError
from nightloom.plan.recipes import PlannedCube, filter_slug
from nightloom.schema.cube import CUBE, FIELD, STAR, TIME, Variable
from nightloom.schema.flags import cf_attributes
from nightloom.store.encodings import (
    create_store,
    read_arrays,
    read_attributes,
    seal,
    write_stars,
    write_whole,
)
from nightloom.store.products import current, published_fingerprint
from nightloom.store.provenance import provenance

FIELD_VERSION = 5
CHUNK_BYTES = 16 << 20
SLAB_BYTES = 256 << 20
MAX_CHUNK_STARS = 16

_BY_STAR = tuple(v for v in CUBE if v.dims[:2] == (TIME, STAR))
_BY_TIME = tuple(v for v in CUBE if v.dims[0] == TIME and STAR not in v.dims)
_FIXED = tuple(v for v in CUBE if TIME not in v.dims)


@dataclass(frozen=True, slots=True)
class FieldJob:
    product: str
    cubes: tuple[Path, ...]  # in order of night
    attributes: dict[str, Any]


def field_product(field: str, filter_name: str) -> str:
    """Id of the joined store."""
    return f"field/{field}/{filter_slug(filter_name)}"


def field_recipe(root: Path, cubes: Sequence[PlannedCube]) -> Recipe:
    """Recipe of the joined store of some nights; nights without a cube are left out."""
    product = field_product(cubes[0].field, cubes[0].filter)
    inputs = tuple((cube.product, published_fingerprint(root, cube.product)) for cube in cubes)
    inputs = tuple((name, digest) for name, digest in inputs if digest)
    recipe = Recipe(
        product, inputs, None, FIELD_VERSION, job=None, finish=make_field,
        uses=tuple(cube.product for cube in cubes),
    )  # fmt: skip
    attributes = provenance(
        product,
        fingerprint=recipe.fingerprint,
        inputs=inputs,
        settings=None,
        algorithm=FIELD_VERSION,
    )
    paths = tuple(path for name, _ in inputs if (path := current(root, name)) is not None)
    return replace(recipe, job=FieldJob(product, paths, attributes))


def make_field(job: FieldJob, work: Path, _: list[Any]) -> Made:
    """Join the cubes and write `field.zarr`.

    Raises ProductError: the cubes do not have the same stars or apertures.
    """
    if not job.cubes:
        return Made(outcome="empty", reason="no night of the field could be measured")
    facts = [read_attributes(path) for path in job.cubes]
    times = [read_arrays(path, [v.name for v in _BY_TIME]) for path in job.cubes]
    fixed = _same_fixed(job)
    counts = [len(columns["jd_utc"]) for columns in times]
    sizes = {
        "time": sum(counts),
        "star": len(fixed["star_id"]),
        "aperture": len(fixed["radius_px"]),
    }
    chunk = _chunk_stars(sizes)
    store = work / "field.zarr"
    attributes = job.attributes | {
        key: facts[0][key] for key in ("field", "filter", "instrument", "site", "shape")
    }
    create_store(
        store, FIELD, sizes, attributes=attributes, star_chunk=chunk,
        extra={"flags": cf_attributes("star"), "frame_flags": cf_attributes("frame")},
    )  # fmt: skip
    by_time = {v.name: np.concatenate([columns[v.name] for columns in times]) for v in _BY_TIME}
    nights = [[fact["night"]] * count for fact, count in zip(facts, counts, strict=True)]
    by_time["night"] = np.array([night for some in nights for night in some], dtype=object)
    write_whole(store, by_time | fixed)
    slab = _slab_stars(sizes, chunk)
    for start in range(0, sizes["star"], slab):
        stars = slice(start, min(start + slab, sizes["star"]))
        write_stars(store, start, _joined(job.cubes, stars, _BY_STAR))
    seal(store)
    return Made()


def _same_fixed(job: FieldJob) -> dict[str, NDArray[Any]]:
    names = [v.name for v in _FIXED]
    first = read_arrays(job.cubes[0], names)
    for path in job.cubes[1:]:
        other = read_arrays(path, names)
        for name in names:
            if not _same(first[name], other[name]):
                raise ProductError(
                    where=job.product, why=f"{path} has another {name}", do="reduce it again"
                )
    return first


def _same(first: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(first, other, equal_nan=first.dtype.kind == "f")


def _joined(
    cubes: Sequence[Path], stars: slice, variables: Sequence[Variable]
) -> dict[str, NDArray[Any]]:
    names = [v.name for v in variables]
    parts = [read_arrays(path, names, stars=stars) for path in cubes]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _chunk_stars(sizes: dict[str, int]) -> int:
    bytes_a_star = 4 * max(1, sizes["time"]) * max(1, sizes["aperture"])
    return max(1, min(MAX_CHUNK_STARS, CHUNK_BYTES // bytes_a_star))


def _slab_stars(sizes: dict[str, int], chunk: int) -> int:
    bytes_a_star = 8 * max(1, sizes["time"]) * max(1, sizes["aperture"])
    return chunk * max(1, SLAB_BYTES // (bytes_a_star * chunk))
