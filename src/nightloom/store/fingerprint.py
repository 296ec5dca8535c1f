"""A hash that is the same on every machine and day for the same inputs, settings and version."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

DIGEST_BYTES = 10


def fingerprint(
    *, inputs: Sequence[tuple[str, str]], settings: BaseModel | None, version: int, kind: str
) -> str:
    """Hash of what a product is made of and how, as 20 hex digits.

    inputs: (name, digest) of each; their order counts. version: of the algorithm.
    """
    facts = {
        "kind": kind,
        "settings": {} if settings is None else settings.model_dump(mode="python"),
        "version": version,
    }
    canonical = _canonical(facts)
    if inputs:
        # Two texts each: their JSON is the same everywhere, and there are thousands of them.
        canonical["inputs"] = inputs
    return _digest_of_canonical(canonical)


def digest_of(value: object) -> str:
    """Digest of a value made of plain types.

    Raises TypeError: a type whose text may differ between machines (a path, an object).
    """
    return _digest_of_canonical(_canonical(value))


def _digest_of_canonical(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def digest_of_bytes(data: bytes) -> str:
    """Digest of bytes, as 20 hex digits."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def digest_of_file(path: Path) -> str:
    """Digest of a file's content, read in pieces."""
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()


def _canonical(value: object) -> Any:
    """Only types whose JSON is the same everywhere; empty values of a mapping are dropped."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    if isinstance(value, BaseModel):
        return _canonical(value.model_dump(mode="python"))
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items() if not _is_empty(v)}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no stable text: {value!r}")


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)
