"""Frames that the tests of this room write by hand, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

BLOCK_BYTES = 2880


def header_bytes(cards: Sequence[str | bytes]) -> bytes:
    """Cards as given, each filled to 80 bytes, END, blocks filled."""
    raw = [card if isinstance(card, bytes) else card.encode("ascii") for card in cards]
    assert all(len(card) <= 80 for card in raw)
    text = b"".join(card.ljust(80) for card in [*raw, b"END"])
    return text.ljust(-(-len(text) // BLOCK_BYTES) * BLOCK_BYTES)


WriteFrame = Callable[..., Path]


@pytest.fixture
def write_frame(tmp_path: Path) -> WriteFrame:
    """write_frame(name, cards) -> path of a frame of 3 rows and 4 columns, int16."""

    def write(name: str, cards: Sequence[str | bytes], *, pixels: bytes | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.arange(12, dtype=">i2").tobytes() if pixels is None else pixels
        first = [
            "SIMPLE  =                    T",
            "BITPIX  =                   16",
            "NAXIS   =                    2",
            "NAXIS1  =                    4",
            "NAXIS2  =                    3",
        ]
        path.write_bytes(header_bytes([*first, *cards]) + data.ljust(BLOCK_BYTES, b"\0"))
        return path

    return write
