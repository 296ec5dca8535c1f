"""The reader against files written by astropy and by hand."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import astropy.io.fits
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from nightloom.errors import FrameError, TransientError
from nightloom.frames.fits import (
    file_digest,
    first_image,
    header_digest,
    locate_image,
    merged_cards,
    pixel_dtype,
    read_hdus,
    read_pixels,
    read_stored,
    stored_zero,
    unpack,
)

RNG = np.random.default_rng(11)
INT16 = RNG.integers(-(2**15), 2**15, (7, 5), dtype=np.int16)
UINT16 = RNG.integers(0, 2**16, (7, 5), dtype=np.uint16)
FLOAT32 = RNG.normal(size=(7, 5)).astype(np.float32)


def _write(path: Path, data: np.ndarray, **cards: object) -> Path:
    hdu = astropy.io.fits.PrimaryHDU(data)
    for keyword, value in cards.items():
        hdu.header[keyword] = value
    hdu.writeto(path)
    return path


@pytest.mark.parametrize(
    "data",
    [
        RNG.integers(0, 256, (7, 5), dtype=np.uint8),
        RNG.integers(-128, 128, (7, 5), dtype=np.int8),
        INT16,
        UINT16,
        RNG.integers(-(2**31), 2**31, (7, 5), dtype=np.int32),
        RNG.integers(0, 2**32, (7, 5), dtype=np.uint32),
        RNG.integers(-(2**62), 2**62, (7, 5), dtype=np.int64),
        RNG.integers(0, 2**64, (7, 5), dtype=np.uint64),
        FLOAT32,
    ],
    ids=lambda data: str(data.dtype),
)
def test_pixels_of_every_type_exactly(tmp_path: Path, data: np.ndarray) -> None:
    path = _write(tmp_path / "a.fits", data)
    pixels = read_pixels(path, 0)
    assert pixels.dtype == data.dtype
    assert pixels.dtype.isnative
    assert_array_equal(pixels, data)
    for rows in (slice(2, 5), slice(6, 99), slice(3, 3), slice(-2, None)):
        assert_array_equal(read_pixels(path, 0, rows=rows), data[rows])


@pytest.mark.parametrize("data", [INT16, UINT16], ids=lambda data: str(data.dtype))
def test_words_as_they_are_stored(tmp_path: Path, data: np.ndarray) -> None:
    path = _write(tmp_path / "a.fits", data)
    hdu = locate_image(path, 0)
    out = np.empty((3, 5), ">i2")
    read_stored(path, hdu, 2, out)
    assert_array_equal(out.astype(int) + stored_zero(hdu), data[2:5])
    with pytest.raises(FrameError, match="truncated"):
        read_stored(path, hdu, 2000, out)
    with pytest.raises(ValueError, match="out must be"):
        read_stored(path, hdu, 2, np.empty((3, 5), np.int16))


def test_what_is_not_stored_as_plain_words(tmp_path: Path) -> None:
    for k, cards in enumerate(({"BLANK": 3}, {"BSCALE": 2.0}, {"BZERO": 7})):
        path = tmp_path / f"{k}.fits"
        hdu = astropy.io.fits.PrimaryHDU(INT16)
        hdu.writeto(path)
        with astropy.io.fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
            hdus[0].header.update(cards)
        assert stored_zero(locate_image(path, 0)) is None
        assert pixel_dtype(locate_image(path, 0)) == read_pixels(path, 0).dtype
    assert stored_zero(locate_image(_write(tmp_path / "f.fits", FLOAT32), 0)) is None


def test_doubles_become_floats(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits", RNG.normal(size=(3, 2)))
    assert read_pixels(path, 0).dtype == np.float32


def test_scaled_integers_become_floats(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    hdu = astropy.io.fits.PrimaryHDU(np.array([[1000.0, 1002.5], [1005.0, 1010.0]]))
    hdu.scale("int16", bscale=2.5, bzero=1000.0)
    hdu.writeto(path)
    pixels = read_pixels(path, 0)
    assert pixels.dtype == np.float32
    assert_array_equal(pixels, [[1000.0, 1002.5], [1005.0, 1010.0]])


def test_blank_is_nan(write_frame: Callable[..., Path]) -> None:
    path = write_frame("a.fits", ["BLANK   = 5", "BZERO   = 32768"])
    pixels = read_pixels(path, 0)
    assert pixels.dtype == np.float32
    assert np.isnan(pixels[1, 1])
    assert_array_equal(pixels.ravel()[6:], 32768.0 + np.arange(6, 12))


def test_a_step_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits", INT16)
    with pytest.raises(ValueError, match="step 1"):
        read_pixels(path, 0, rows=slice(0, 4, 2))


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
@pytest.mark.parametrize("named", [True, False])
def test_packed_files_by_their_first_bytes(
    tmp_path: Path, pack: Callable[[bytes], bytes], suffix: str, named: bool
) -> None:
    plain = _write(tmp_path / "a.fits", UINT16, OBJECT="M 31")
    path = tmp_path / ("b.fits" + suffix if named else "b.fits")
    path.write_bytes(pack(plain.read_bytes()))
    (hdu,) = read_hdus(path)
    assert hdu.cards["OBJECT"] == "M 31"
    assert hdu.file_bytes is None
    assert_array_equal(read_pixels(path, 0), UINT16)
    assert_array_equal(read_pixels(path, 0, rows=slice(3, 5)), UINT16[3:5])
    assert header_digest((hdu,), hdu) == header_digest(read_hdus(plain), read_hdus(plain)[0])


def test_a_packed_file_is_unpacked_as_it_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits", UINT16)
    packed = tmp_path / "a.fits.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert stored_zero(locate_image(packed, 0)) is None
    unpack(packed, tmp_path / "b.fits")
    assert (tmp_path / "b.fits").read_bytes() == path.read_bytes()
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(FrameError, match="ends early"):
        unpack(packed, tmp_path / "b.fits")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_packed_files_that_end_early_or_are_damaged(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    plain = _write(tmp_path / "a.fits", RNG.integers(0, 2**16, (300, 400), dtype=np.uint16))
    packed = pack(plain.read_bytes())
    short = tmp_path / "short.fits"
    short.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(FrameError, match="truncated"):
        read_pixels(short, 0)
    damaged = tmp_path / "damaged.fits"
    damaged.write_bytes(packed[:5000] + bytes(2000) + packed[7000:])
    with pytest.raises(FrameError, match="damaged"):
        read_pixels(damaged, 0)


@pytest.mark.parametrize("data", [UINT16, INT16, FLOAT32], ids=lambda data: str(data.dtype))
@pytest.mark.parametrize("method", ["RICE_1", "GZIP_2"])
def test_tile_compressed_images(tmp_path: Path, data: np.ndarray, method: str) -> None:
    path = tmp_path / "a.fits.fz"
    options = {"compression_type": method, "quantize_level": 0.0}
    if data.dtype == np.float32 and method == "RICE_1":
        options["quantize_level"] = 1e-4
    image = astropy.io.fits.CompImageHDU(data, **options)
    image.header["OBJECT"] = "M 31"
    astropy.io.fits.HDUList([astropy.io.fits.PrimaryHDU(), image]).writeto(path)
    hdus = read_hdus(path)
    hdu = first_image(hdus, path=path)
    assert (hdu.index, hdu.ny, hdu.nx, hdu.compressed) == (1, 7, 5, True)
    assert hdu.cards["OBJECT"] == "M 31"
    with astropy.io.fits.open(path) as opened:
        expected = opened[1].data.copy()
    pixels = read_pixels(path, 1)
    assert pixels.dtype == data.dtype
    assert_array_equal(pixels, expected)
    assert_array_equal(read_pixels(path, 1, rows=slice(2, 6)), expected[2:6])
    path.write_bytes(path.read_bytes()[: hdu.data_offset + 8])
    with pytest.raises(FrameError, match="truncated"):
        read_pixels(path, 1)


def test_extensions_are_walked_and_inherit(tmp_path: Path) -> None:
    path = tmp_path / "mef.fits"
    primary = astropy.io.fits.PrimaryHDU()
    primary.header["OBJECT"] = "primary"
    primary.header["FILTER"] = "V"
    table = astropy.io.fits.BinTableHDU.from_columns(
        [astropy.io.fits.Column("a", "PE()", array=np.array([[1.0], [2.0, 3.0]], dtype=object))]
    )
    images = [astropy.io.fits.ImageHDU(UINT16), astropy.io.fits.ImageHDU(FLOAT32)]
    images[0].header["OBJECT"] = "own"
    astropy.io.fits.HDUList([primary, table, *images]).writeto(path)
    hdus = read_hdus(path)
    assert [hdu.shape for hdu in hdus] == [(), (), (7, 5), (7, 5)]
    image = first_image(hdus, path=path)
    cards = merged_cards(hdus, image)
    assert image.index == 2
    assert "own" in cards["OBJECT"]
    assert "V" in cards["FILTER"]
    assert_array_equal(read_pixels(path, 2), UINT16)
    assert_array_equal(read_pixels(path, 3, rows=slice(1, 3)), FLOAT32[1:3])
    for index in (0, 1, 4):
        with pytest.raises(FrameError, match="no image"):
            read_pixels(path, index)


def test_axes_of_length_one_do_not_count(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits", UINT16[None])
    (hdu,) = read_hdus(path)
    assert (hdu.shape, hdu.ny, hdu.nx) == ((1, 7, 5), 7, 5)
    assert_array_equal(read_pixels(path, 0, rows=slice(2, 4)), UINT16[2:4])
    cube = _write(tmp_path / "b.fits", np.zeros((2, 3, 4), dtype=np.int16))
    with pytest.raises(FrameError, match="shape"):
        first_image(read_hdus(cube), path=cube)


def test_truncated_pixels_name_file_and_bytes(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits", INT16)
    path.write_bytes(path.read_bytes()[: 2880 + 40])
    with pytest.raises(FrameError, match=r"a\.fits\[0\]: truncated: 2950 bytes .* 2920"):
        read_pixels(path, 0)
    assert_array_equal(read_pixels(path, 0, rows=slice(0, 4)), INT16[:4])
    with pytest.raises(FrameError, match="truncated"):
        locate_image(path, 0)


def test_missing_padding_is_no_harm(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits", INT16)
    path.write_bytes(path.read_bytes()[: 2880 + 70])
    assert_array_equal(read_pixels(path, 0), INT16)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"just a text that someone named .fits\n" * 100, "no FITS"),
        (b"SIMPLE  =                    T".ljust(80) * 50, "no END"),
        (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), "NAXIS"),
        (
            b"SIMPLE  =                    T".ljust(80)
            + b"BITPIX  = 17".ljust(80)
            + b"NAXIS   = 0".ljust(80)
            + b"END".ljust(2640),
            "BITPIX",
        ),
    ],
    ids=["empty", "text", "no-end", "no-naxis", "bitpix"],
)
def test_what_is_no_fits(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with pytest.raises(FrameError, match=why):
        read_hdus(path)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    for read in (read_hdus, file_digest, lambda path: read_pixels(path, 0)):
        with pytest.raises(FrameError, match="gone"):
            read(tmp_path / "none.fits")


def test_errors_of_the_system_are_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.fits", INT16)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(io, "FileIO", fail)
    for read in (read_hdus, file_digest, lambda path: read_pixels(path, 0)):
        with pytest.raises(TransientError, match="Input/output error"):
            read(path)


def test_a_header_of_many_blocks(tmp_path: Path) -> None:
    cards = {f"KEY{i}": i for i in range(2000)}
    path = _write(tmp_path / "a.fits", INT16, **cards)
    (hdu,) = read_hdus(path)
    assert hdu.cards["KEY1999"] == 1999
    assert_array_equal(read_pixels(path, 0), INT16)


def test_digests_tell_headers_and_files_apart(tmp_path: Path) -> None:
    one = _write(tmp_path / "1.fits", INT16, OBJECT="a")
    same = _write(tmp_path / "2.fits", INT16 + 1, OBJECT="a")
    other = _write(tmp_path / "3.fits", INT16, OBJECT="b")
    digests = [header_digest(read_hdus(p), read_hdus(p)[0]) for p in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert file_digest(one) != file_digest(same)


def test_only_the_section_is_read(write_frame: Callable[..., Path]) -> None:
    path = write_frame("a.fits", [])
    header = path.read_bytes()[:2880]
    for keyword in (b"NAXIS1", b"NAXIS2"):
        at = header.index(keyword) + 10
        header = header[:at] + b"90000".rjust(20) + header[at + 20 :]
    path.write_bytes(header)
    os.truncate(path, 2880 + 2 * 90000 * 90000)  # 15 GiB that no disk and no memory holds
    (hdu,) = read_hdus(path)
    assert hdu.data_bytes == 2 * 90000 * 90000
    pixels = read_pixels(path, 0, rows=slice(89_998, 90_000))
    assert_array_equal(pixels, np.zeros((2, 90000), dtype=np.int16))


def test_files_do_not_stay_open(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits", np.zeros((200, 100), dtype=np.int16))
    packed = tmp_path / "b.fits.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    tiles = tmp_path / "c.fits.fz"
    astropy.io.fits.CompImageHDU(np.zeros((40, 30), dtype=np.int16)).writeto(tiles)
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [
        read_pixels(*where, rows=slice(i, i + 1))
        for i in range(30)
        for where in ((path, 0), (tiles, 1), (packed, 0))
    ]
    assert len(kept) == 90
    assert len(list(Path("/proc/self/fd").iterdir())) == before
