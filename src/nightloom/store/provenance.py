"""Provenance: what a product was made of, by what, under which conventions."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from nightloom.schema.cube import CONVENTIONS, CUBE_SCHEMA_VERSION

# Packages whose version can change a number.
PACKAGES = ("astropy", "numba", "numpy", "scikit-image", "twirl", "zarr")


def provenance(
    product: str,
    *,
    fingerprint: str,
    inputs: Sequence[tuple[str, str]],
    settings: BaseModel | None,
    algorithm: int,
) -> dict[str, Any]:
    """Attributes that every product carries: equal for equal products, so no time and no host."""
    return {
        "Conventions": CONVENTIONS,
        "product": product,
        "fingerprint": fingerprint,
        "schema_version": CUBE_SCHEMA_VERSION,
        "algorithm_version": algorithm,
        "inputs": [list(pair) for pair in inputs],
        "settings": {} if settings is None else settings.model_dump(mode="json"),
        "software": dict(_software()),
    }


@lru_cache(maxsize=1)
def _software() -> dict[str, str]:
    # A search through the installed packages: 25 ms, and a product each would pay for it.
    return {"nightloom": version("nightloom"), "python": platform.python_version()} | {
        name: version(name) for name in PACKAGES
    }
