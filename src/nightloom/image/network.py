"""A small convolutional network run with numpy: its weights from a file, its forward pass.

The architecture of Ballet (Garcia et al. 2022, MNRAS 509, 4817): 3x3 convolutions, then dense
layers; how many and how wide is read from the arrays. Between two convolutions lies a 2x2
maximum, as published, or the convolutions take strides of their own and no padding.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

SIDE = 15
HALF = SIDE // 2

_BATCH = 20  # stars convolved at once: their windows stay in the cache
_KERNEL = 3
_SCALES = ("range", "inner_peak", "even_noise")

Floats32 = NDArray[np.float32]
Layer = tuple[Floats32, Floats32]  # kernel [in, out] and bias [out]


@dataclass(frozen=True, slots=True)
class Network:
    """Weights as matrices, and how cutouts are to be scaled.

    strides: of each convolution; empty: padded, with a 2x2 maximum between them. hidden: "relu"
    or "sigmoid" after all dense layers but the last. scale: "range" (0 to 1 from the lowest to
    the highest pixel), "inner_peak" (less the background, over the inner 9x9's maximum) or
    "even_noise" (the root of that with the sky's variance, so that all pixels are as noisy).
    fwhm_px: the widths of stars it was trained on.
    """

    convs: tuple[Layer, ...]
    denses: tuple[Layer, ...]
    strides: tuple[int, ...]
    hidden: str
    scale: str
    fwhm_px: tuple[float, float]


def load_weights(path: Path) -> Network:
    """The network of an .npz with `<layer>_kernel` and `<layer>_bias`, layers in order of name.

    Kernels are [3, 3, in, out] or [in, out]. What the file doesn't say of `strides`, `hidden`,
    `scale` and `fwhm_px` is as in the published Ballet: none, sigmoid, range, any width.
    Raises ValueError: an array is missing, or the shapes don't follow from each other.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    low, high = arrays.get("fwhm_px", np.array([0.0, np.inf]))
    names = sorted((n[:-7] for n in arrays if n.endswith("_kernel")), key=_natural)
    kernels = [_array(arrays, f"{name}_kernel", path) for name in names]
    biases = [_array(arrays, f"{name}_bias", path) for name in names]
    if any(kernel.ndim not in (2, 4) for kernel in kernels):
        raise ValueError(f"{path}: kernels must have two or four dimensions")
    layers = list(zip(kernels, biases, strict=True))
    network = Network(
        convs=tuple((_matrix(k), b) for k, b in layers if k.ndim == 4),
        denses=tuple((_matrix(k), b) for k, b in layers if k.ndim == 2),
        strides=tuple(int(stride) for stride in arrays.get("strides", ())),
        hidden=str(arrays.get("hidden", "sigmoid")),
        scale=str(arrays.get("scale", "range")),
        fwhm_px=(float(low), float(high)),
    )
    _check(network, path)
    return network


def _natural(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*?)(\d*)", name)
    return (found[1], int(found[2] or -1)) if found else (name, -1)


def _array(arrays: dict[str, NDArray[Any]], name: str, path: Path) -> Floats32:
    if name not in arrays:
        raise ValueError(f"{path}: no array {name}")
    return np.ascontiguousarray(arrays[name], dtype=np.float32)


def _matrix(kernel: Floats32) -> Floats32:
    return kernel.reshape(-1, kernel.shape[-1])


def _check(network: Network, path: Path) -> None:
    """Raises ValueError: layers that don't follow from each other."""
    side, width = SIDE, 1
    if network.strides and len(network.strides) != len(network.convs):
        raise ValueError(f"{path}: {len(network.convs)} convolutions, strides {network.strides}")
    for k, (kernel, bias) in enumerate(network.convs):
        if network.strides:
            side = (side - _KERNEL) // max(network.strides[k], 1) + 1
        elif k:
            side = (side + 1) // 2
        if kernel.shape != (_KERNEL**2 * width, bias.size) or side < 1:
            raise ValueError(f"{path}: convolution {k}: {kernel.shape, bias.shape} after {width}")
        width = bias.size
    width *= side * side
    for k, (kernel, bias) in enumerate(network.denses):
        if kernel.shape != (width, bias.size):
            raise ValueError(f"{path}: dense layer {k}: {kernel.shape, bias.shape} after {width}")
        width = bias.size
    if not network.convs or not network.denses or width != 2:
        raise ValueError(f"{path}: needs convolutions and dense layers that end in two numbers")
    if network.hidden not in ("relu", "sigmoid") or network.scale not in _SCALES:
        raise ValueError(f"{path}: unknown {network.hidden!r} or {network.scale!r}")


def predict(network: Network, cutouts: Floats32) -> Floats32:
    """What the last layer gives [star, 2] for scaled cutouts [star, 15, 15]."""
    parts = [
        _convolutions(network, cutouts[start : start + _BATCH, :, :, None])
        for start in range(0, len(cutouts), _BATCH)
    ]
    x = np.concatenate([np.empty((0, len(network.denses[0][0])), dtype=np.float32), *parts])
    for kernel, bias in network.denses[:-1]:
        x = x @ kernel
        if network.hidden == "relu":
            _rectify(x, bias)
        else:
            x = np.reciprocal(1 + np.exp(np.minimum(-x - bias, 80)))
    kernel, bias = network.denses[-1]
    found: Floats32 = x @ kernel + bias
    return found


def _convolutions(network: Network, x: Floats32) -> Floats32:
    for k, layer in enumerate(network.convs):
        if network.strides:
            x = _convolved(x, layer, network.strides[k])
        else:
            x = _convolved(_padded(_pooled(x) if k else x), layer, 1)
    return x.reshape(len(x), -1)


def _convolved(x: Floats32, layer: Layer, stride: int) -> Floats32:
    """The rectified convolution of [star, y, x, channel], without padding."""
    kernel, bias = layer
    n, ny, nx, width = x.shape
    rows, columns = (ny - _KERNEL) // stride + 1, (nx - _KERNEL) // stride + 1
    if width == 1 and stride == 1:
        out = np.empty((n, rows, columns, bias.size), dtype=np.float32)
        _convolve_plane(x[:, :, :, 0], kernel, bias, out)
        return out
    windows = np.empty((n, rows, columns, _KERNEL, _KERNEL * width), dtype=np.float32)
    _windows(x.reshape(-1), ny * nx * width, nx * width, width, stride, windows)
    y = windows.reshape(-1, kernel.shape[0]) @ kernel
    _rectify(y, bias)
    return y.reshape(n, rows, columns, bias.size)


def _padded(x: Floats32) -> Floats32:
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _pooled(x: Floats32) -> Floats32:
    """Maximum of 2x2 pixels [star, y, x, channel]; of fewer at the far end of an odd side."""
    n, ny, nx, width = x.shape
    even = np.full((n, ny + ny % 2, nx + nx % 2, width), -np.inf, dtype=np.float32)
    even[:, :ny, :nx] = x
    pooled: Floats32 = even.reshape(n, even.shape[1] // 2, 2, -1, 2, width).max(axis=(2, 4))
    return pooled


@njit(nogil=True, cache=True)
def _convolve_plane(x: Floats32, kernel: Floats32, bias: Floats32, out: Floats32) -> None:
    """The rectified 3x3 convolution of planes [star, y, x]: nine products need no matrix."""
    n, rows, columns, width = out.shape
    zero = np.float32(0.0)
    for star in range(n):
        for j in range(rows):
            above, row, below = x[star, j], x[star, j + 1], x[star, j + 2]
            for i in range(columns):
                a0, a1, a2 = above[i], above[i + 1], above[i + 2]
                b0, b1, b2 = row[i], row[i + 1], row[i + 2]
                c0, c1, c2 = below[i], below[i + 1], below[i + 2]
                for c in range(width):
                    value = bias[c] + a0 * kernel[0, c] + a1 * kernel[1, c] + a2 * kernel[2, c]
                    value += b0 * kernel[3, c] + b1 * kernel[4, c] + b2 * kernel[5, c]
                    value += c0 * kernel[6, c] + c1 * kernel[7, c] + c2 * kernel[8, c]
                    out[star, j, i, c] = value if value > zero else zero


@njit(nogil=True, cache=True)
def _windows(x: Floats32, size: int, line: int, width: int, stride: int, out: Floats32) -> None:
    """Copies the rows of 3x3 windows [star, y, x, row, 3 x channel] out of x [star x y x channel].

    Flat and unsigned: each copy is then one move of a block, three times as fast.
    """
    n, rows, columns, high, wide = out.shape
    flat = out.reshape(-1)
    length, place = np.uint64(wide), np.uint64(0)
    for star in range(n):
        for j in range(rows):
            for i in range(columns):
                for v in range(high):
                    start = np.uint64(star * size + (j * stride + v) * line + i * stride * width)
                    for c in range(length):
                        flat[place + c] = x[start + c]
                    place += length


@njit(nogil=True, cache=True)
def _rectify(y: Floats32, bias: Floats32) -> None:
    """Adds the bias [channel] to y [place, channel]; below zero it is zero."""
    zero = np.float32(0.0)
    for place in range(y.shape[0]):
        for c in range(y.shape[1]):
            value = y[place, c] + bias[c]
            y[place, c] = value if value > zero else zero
