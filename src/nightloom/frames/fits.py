"""FITS files: header cards and sections of pixels. The only reader of FITS.

Headers are read by hand: HDUs are walked by seeking over their data. Astropy is asked only for
the pixels of tile-compressed images. Whether a file is packed by gzip or bzip2 is told by its
first bytes, not by its name.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.io.fits
import numpy as np

from nightloom.errors import FrameError, TransientError
from nightloom.frames.cards import CARD_BYTES, Cards, Value, parse_value, split_cards, value_of
from nightloom.frames.scaling import Pixels, scaled

BLOCK_BYTES = 2880
_FIRST_READ = 4 * BLOCK_BYTES  # 144 cards: one read serves nearly every header
_MAX_HEADER_BYTES = 10_000 * BLOCK_BYTES
_END = b"END".ljust(8)
_HASH_READ = 1 << 20
_RAW_DTYPE = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}

Stream = io.FileIO | gzip.GzipFile | bz2.BZ2File


@dataclass(frozen=True, slots=True)
class Hdu:
    """One header and data unit; `shape` is that of its image, () where it holds none."""

    index: int
    raw: Cards  # keyword -> text of the card
    header: bytes  # its cards as they stand in the file, without END
    data_offset: int  # in the unpacked file
    data_bytes: int  # without padding
    shape: tuple[int, ...]  # slowest axis first; after decompression
    bitpix: int  # after decompression
    compressed: bool  # an image in tiles, in a binary table
    file_bytes: int | None  # size of the file, None where it is packed as a whole

    @property
    def cards(self) -> dict[str, Value]:
        """All cards with a valid value, typed."""
        typed = {keyword: parse_value(text) for keyword, text in self.raw.items()}
        return {keyword: value for keyword, value in typed.items() if value is not None}

    @property
    def is_2d(self) -> bool:
        """A plane of pixels; further axes of length 1 do not count."""
        return len(self.shape) == 2 or (len(self.shape) > 2 and math.prod(self.shape[:-2]) == 1)

    @property
    def ny(self) -> int:
        return self.shape[-2] if self.is_2d else 0

    @property
    def nx(self) -> int:
        return self.shape[-1] if self.is_2d else 0


def read_hdus(path: Path) -> tuple[Hdu, ...]:
    """The HDUs of a file, headers only.

    Of files packed as a whole only those up to the first with an image are read, as finding
    the next would unpack it all.
    Raises FrameError: gone, no FITS, header cut or damaged. TransientError: the system failed.
    """
    with _opened(path) as (file, size):
        return tuple(_walk(file, size, path=path))


def first_image(hdus: tuple[Hdu, ...], *, path: Path) -> Hdu:
    """The first HDU with an image of two dimensions.

    Raises FrameError: there is none.
    """
    for hdu in hdus:
        if hdu.is_2d:
            return hdu
    shapes = [hdu.shape for hdu in hdus if hdu.shape]
    why = f"the image has the shape {shapes[0]}" if shapes else "no HDU holds an image"
    raise FrameError(where=str(path), why=why, do="only images of two dimensions can be measured")


def merged_cards(hdus: tuple[Hdu, ...], hdu: Hdu) -> Cards:
    """Cards of an HDU over those of the primary header, which extensions inherit."""
    return hdu.raw if hdu.index == 0 else {**hdus[0].raw, **hdu.raw}


def header_digest(hdus: tuple[Hdu, ...], hdu: Hdu) -> str:
    """Digest of the header bytes that say what the frame is: the primary's and its own."""
    digest = hashlib.blake2b(hdus[0].header, digest_size=16)
    if hdu.index:
        digest.update(hdu.header)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Digest of a whole file as it lies on disk."""
    digest = hashlib.blake2b(digest_size=16)
    with _translated(path), io.FileIO(path) as file:
        while block := file.read(_HASH_READ):
            digest.update(block)
    return digest.hexdigest()


def read_pixels(path: Path, hdu_index: int, *, rows: slice | None = None) -> Pixels:
    """Pixels [y, x] of an image, of its rows `rows` only: native bytes, scaled as FITS says.

    Integers stay integers (BZERO of the unsigned convention applied exactly), unless BSCALE,
    another BZERO or BLANK make them float32; floats become float32; BLANK becomes NaN.
    Raises FrameError: gone, truncated, damaged, no such image. TransientError: the system failed.
    """
    where = f"{path}[{hdu_index}]"
    with _opened(path) as (file, size):
        found = {hdu.index: hdu for hdu in _walk(file, size, path=path, until=hdu_index)}
        hdu = found.get(hdu_index)
        if hdu is None or not hdu.is_2d:
            raise FrameError(where=where, why="is no image of two dimensions")
        start, stop, step = (rows or slice(None)).indices(hdu.ny)
        if step != 1:
            raise ValueError(f"rows must be a slice of step 1, not {rows}")
        stop = max(start, stop)
        if not hdu.compressed:
            raw = _read_rows(file, hdu, start, stop, where=where)
            while size is None and stop == hdu.ny and file.read(_HASH_READ):
                pass  # the checksum of a packed file stands at its end
            return scaled(raw, hdu.raw, hdu.bitpix)
    return scaled(_read_tiles(path, hdu, start, stop, where=where), hdu.raw, hdu.bitpix)


def locate_image(path: Path, hdu_index: int) -> Hdu:
    """The HDU of an image, for `read_stored`: so its header is walked once, not at each read.

    Raises FrameError: gone, truncated, damaged, no such image. TransientError: the system failed.
    """
    with _opened(path) as (file, size):
        hdu = next(
            (h for h in _walk(file, size, path=path, until=hdu_index) if h.index == hdu_index), None
        )
    where = f"{path}[{hdu_index}]"
    if hdu is None or not hdu.is_2d:
        raise FrameError(where=where, why="is no image of two dimensions")
    needed = hdu.data_offset + hdu.data_bytes
    if size is not None and size < needed:
        why = f"truncated: {needed} bytes are needed, at most {size} are there"
        raise FrameError(where=where, why=why)
    return hdu


def pixel_dtype(hdu: Hdu) -> np.dtype[Any]:
    """Type of what `read_pixels` returns of an image."""
    native = np.dtype(_RAW_DTYPE[hdu.bitpix]).newbyteorder("=")
    return scaled(np.zeros((1, 1), native), hdu.raw, hdu.bitpix).dtype


def stored_zero(hdu: Hdu) -> int | None:
    """What is to be added to 16-bit integers as they are stored: 0 or 32768.

    None where that is not all that makes them what `read_pixels` returns, or they are packed.
    """
    if hdu.compressed or hdu.file_bytes is None or hdu.bitpix != 16:
        return None
    kind = pixel_dtype(hdu)
    return {"i": 0, "u": 1 << 15}.get(kind.kind)


def read_stored(path: Path, hdu: Hdu, first_row: int, out: Pixels) -> None:
    """Rows from `first_row` on, as the file has them, into `out` [y, x] of type >i2.

    For images that have a `stored_zero`; nothing is allocated. Raises what `read_pixels` raises.
    """
    if out.dtype != _RAW_DTYPE[16] or out.shape[1] != hdu.nx or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous >i2 [y, {hdu.nx}]")
    with _translated(path), io.FileIO(path) as file:
        _fill_rows(file, hdu, first_row, out, where=f"{path}[{hdu.index}]")


def unpack(path: Path, target: Path) -> None:
    """Write a file that is packed by gzip or bzip2 as it is unpacked.

    Raises FrameError: gone, truncated, damaged. TransientError: the system failed.
    """
    with _opened(path) as (file, _), target.open("wb") as unpacked:
        shutil.copyfileobj(file, unpacked, _HASH_READ)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Stream, int | None]]:
    """The file, unpacked while it is read, and its size, None where that is not known."""
    with _translated(path), io.FileIO(path) as file:
        magic = file.read(3)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield unpacked, None
        elif magic == b"BZh":
            with bz2.BZ2File(file, mode="rb") as unpacked:
                yield unpacked, None
        else:
            yield file, os.fstat(file.fileno()).st_size


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Errors of the system and of the unpackers in our terms."""
    try:
        yield
    except FileNotFoundError:
        raise FrameError(where=str(path), why="the file is gone", do="scan again") from None
    except EOFError:
        raise FrameError(where=str(path), why="truncated: the packed file ends early") from None
    except zlib.error as error:
        raise FrameError(where=str(path), why=f"the packed file is damaged: {error}") from None
    except OSError as error:
        if error.errno is None:  # not from the system but from gzip or bz2
            why = f"the packed file is damaged: {error}"
            raise FrameError(where=str(path), why=why) from None
        why = error.strerror or str(error)
        raise TransientError(where=str(path), why=why, do="try again") from error


def _walk(file: Stream, size: int | None, *, path: Path, until: int | None = None) -> Iterator[Hdu]:
    """HDUs from the start of the file; what follows the last one is no HDU and is left alone."""
    offset = index = 0
    while index == 0 or size is None or offset < size:
        found = _read_header(file, offset, where=f"{path}[{index}]", is_first=index == 0)
        if found is None:
            return
        header, data_offset = found
        hdu = _hdu(header, data_offset, size, index=index, where=f"{path}[{index}]")
        yield hdu
        if until is None and size is None and hdu.shape:
            return
        if until is not None and index >= until:
            return
        offset = data_offset + -(-hdu.data_bytes // BLOCK_BYTES) * BLOCK_BYTES
        index += 1


def _read_header(
    file: Stream, offset: int, *, where: str, is_first: bool
) -> tuple[bytes, int] | None:
    """Cards before END and the offset of the data, None where no HDU begins."""
    file.seek(offset)
    data = file.read(_FIRST_READ)
    if not data.startswith(b"SIMPLE  =" if is_first else b"XTENSION="):
        if is_first:
            why = "is no FITS file" if data else "the file is empty"
            raise FrameError(where=where, why=why)
        return None
    searched = 0
    while (end := _find_end(data, searched)) < 0:
        searched = len(data) - len(data) % CARD_BYTES
        more = file.read(16 * _FIRST_READ) if len(data) < _MAX_HEADER_BYTES else b""
        if not more:
            if is_first:
                raise FrameError(where=where, why="the header has no END: truncated")
            return None
        data += more
    blocks = -(-(end + CARD_BYTES) // BLOCK_BYTES)
    return data[:end], offset + blocks * BLOCK_BYTES


def _find_end(data: bytes, start: int) -> int:
    """Offset of the END card, -1 where there is none yet."""
    at = data.find(_END, start)
    while at >= 0 and at % CARD_BYTES:
        at = data.find(_END, at + 1)
    return at


def _hdu(header: bytes, data_offset: int, file_bytes: int | None, *, index: int, where: str) -> Hdu:
    raw = split_cards(header)
    axes = _axes(raw, "NAXIS", where=where)
    bitpix = _integer(raw, "BITPIX", where=where)
    compressed = value_of(raw, "ZIMAGE") is True
    groups = value_of(raw, "GROUPS") is True and bool(axes) and axes[0] == 0
    if bitpix not in _RAW_DTYPE:
        raise FrameError(where=f"{where} BITPIX", why=f"{bitpix} is no type of FITS")
    size = math.prod(axes[1:] if groups else axes) if axes else 0
    extra, count = (value_of(raw, "PCOUNT"), value_of(raw, "GCOUNT")) if index or groups else (0, 1)
    size += extra if isinstance(extra, int) else 0
    size *= abs(bitpix) // 8 * (count if isinstance(count, int) else 1)
    is_image = index == 0 or value_of(raw, "XTENSION") == "IMAGE"
    if compressed:
        axes, bitpix = _axes(raw, "ZNAXIS", where=where), _integer(raw, "ZBITPIX", where=where)
    shape = tuple(reversed(axes)) if (is_image or compressed) and not groups else ()
    return Hdu(
        index=index,
        raw=raw,
        header=header,
        data_offset=data_offset,
        data_bytes=size,
        shape=shape if all(shape) else (),
        bitpix=bitpix,
        compressed=compressed,
        file_bytes=file_bytes,
    )


def _axes(raw: Cards, prefix: str, *, where: str) -> list[int]:
    n_axes = _integer(raw, prefix, where=where)
    return [_integer(raw, f"{prefix}{i + 1}", where=where) for i in range(min(n_axes, 999))]


def _integer(raw: Cards, keyword: str, *, where: str) -> int:
    value = value_of(raw, keyword)
    if type(value) is not int or (value < 0 and not keyword.endswith("BITPIX")):
        shown = raw.get(keyword, "missing").strip()
        raise FrameError(where=f"{where} {keyword}", why=f"is no number: {shown}")
    return value


def _read_rows(file: Stream, hdu: Hdu, start: int, stop: int, *, where: str) -> Pixels:
    """Rows start to stop as they are stored, byte order too; nothing else is read."""
    raw = np.empty((stop - start, hdu.nx), dtype=_RAW_DTYPE[hdu.bitpix])
    _fill_rows(file, hdu, start, raw, where=where)
    return raw


def _fill_rows(file: Stream, hdu: Hdu, start: int, raw: Pixels, *, where: str) -> None:
    """Rows from `start` on as they are stored into `raw`."""
    row_bytes = hdu.nx * raw.itemsize
    file.seek(hdu.data_offset + start * row_bytes)
    buffer = raw.reshape(-1).view(np.uint8).data
    filled = 0
    while filled < raw.nbytes:
        n_bytes = file.readinto(buffer[filled:])
        if not n_bytes:
            needed = hdu.data_offset + start * row_bytes + raw.nbytes
            there = hdu.data_offset + start * row_bytes + filled
            why = f"truncated: {needed} bytes are needed, at most {there} are there"
            raise FrameError(where=where, why=why)
        filled += n_bytes


def _read_tiles(path: Path, hdu: Hdu, start: int, stop: int, *, where: str) -> Pixels:
    """Rows start to stop of a tile-compressed image, unpacked by astropy, not yet scaled."""
    end = hdu.data_offset + hdu.data_bytes
    if hdu.file_bytes is not None and hdu.file_bytes < end:
        raise FrameError(where=where, why=f"truncated: {hdu.file_bytes} bytes of {end}")
    options = {"memmap": False, "do_not_scale_image_data": True, "lazy_load_hdus": True}
    with _translated(path), astropy.io.fits.open(path, **options) as hdus:
        try:
            rows = (0,) * (len(hdu.shape) - 2) + (slice(start, stop),)
            raw: Pixels = np.asarray(hdus[hdu.index].section[rows])
        except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
            raise FrameError(where=where, why=f"its tiles can't be unpacked: {error}") from error
    return raw.astype(raw.dtype.newbyteorder("="), copy=not raw.flags.writeable)
