"""A hash that is the same on every machine and day for the same inputs, settings and version."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

DIGEST_BYTES = 10
_HEAD = '{"inputs":['


@dataclass(frozen=True, slots=True)
class Begun:
    """A hash that has taken in the first inputs of a fingerprint."""

    hasher: hashlib.blake2b
    is_empty: bool


def fingerprint(
    *,
    inputs: Sequence[tuple[str, str]],
    settings: BaseModel | None,
    version: int,
    kind: str,
    begun: Begun | None = None,
) -> str:
    """Hash of what a product is made of and how, as 20 hex digits.

    inputs: (name, digest) of each; their order counts. version: of the algorithm. begun: has
    taken in the inputs that come before these, and can be asked again for other ones.
    """
    facts = {
        "kind": kind,
        "settings": {} if settings is None else settings.model_dump(mode="python"),
        "version": version,
    }
    canonical = _canonical(facts)
    if begun is not None and (inputs or not begun.is_empty):
        text = _text({"inputs": list(inputs)} | canonical).removeprefix(_HEAD)
        hasher = begun.hasher.copy()
        hasher.update(("," + text if inputs and not begun.is_empty else text).encode())
        return hasher.hexdigest()
    if inputs:
        # Two texts each: their JSON is the same everywhere, and there are thousands of them.
        canonical["inputs"] = inputs
    return _digest_of_canonical(canonical)


def begin(inputs: Sequence[tuple[str, str]]) -> Begun:
    """The first inputs of a fingerprint, taken in once for all that it is asked for later."""
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    # In the text of a fingerprint, "inputs" is the first of the keys in order.
    hasher.update((_HEAD + _text(list(inputs))[1:-1]).encode())
    return Begun(hasher, not inputs)


def digest_of(value: object) -> str:
    """Digest of a value made of plain types.

    Raises TypeError: a type whose text may differ between machines (a path, an object).
    """
    return _digest_of_canonical(_canonical(value))


def _digest_of_canonical(value: object) -> str:
    return hashlib.blake2b(_text(value).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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
