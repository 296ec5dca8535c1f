"""The forward pass against one written out here, and files that are no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from nightloom.image.network import load_weights, predict

Arrays = dict[str, NDArray[Any]]


def random_arrays(convs: tuple[int, ...], denses: tuple[int, ...], flat: int) -> Arrays:
    rng = np.random.default_rng(4)
    arrays: Arrays = {}
    width = 1
    for k, n in enumerate(convs):
        scale = np.sqrt(2 / (9 * width))
        arrays[f"Conv_{k}_kernel"] = rng.normal(0, scale, (3, 3, width, n)).astype(np.float32)
        arrays[f"Conv_{k}_bias"] = rng.normal(0, 0.1, n).astype(np.float32)
        width = n
    width = flat
    for k, n in enumerate(denses):
        arrays[f"Dense_{k}_kernel"] = rng.normal(0, width**-0.5, (width, n)).astype(np.float32)
        arrays[f"Dense_{k}_bias"] = rng.normal(0, 0.1, n).astype(np.float32)
        width = n
    return arrays


def convolve(x: NDArray[np.float64], kernel: NDArray[Any], stride: int) -> NDArray[np.float64]:
    """Windows by the book: [y, x, in] and [3, 3, in, out], no padding."""
    rows, columns = (x.shape[0] - 3) // stride + 1, (x.shape[1] - 3) // stride + 1
    out = np.empty((rows, columns, kernel.shape[3]))
    for j in range(rows):
        for i in range(columns):
            window = x[j * stride : j * stride + 3, i * stride : i * stride + 3]
            out[j, i] = np.tensordot(window, kernel, axes=3)
    return out


def published(arrays: Arrays, cutout: NDArray[Any]) -> NDArray[np.float64]:
    """Three padded convolutions with 2x2 maxima between, two sigmoid layers and a plain one."""
    x = cutout[:, :, None].astype(np.float64)
    for k in range(3):
        x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        x = convolve(x, arrays[f"Conv_{k}_kernel"], 1) + arrays[f"Conv_{k}_bias"]
        x = np.maximum(x, 0)
        if k < 2:
            half = -(-x.shape[0] // 2)
            x = np.array(
                [
                    [x[2 * j : 2 * j + 2, 2 * i : 2 * i + 2].max(axis=(0, 1)) for i in range(half)]
                    for j in range(half)
                ]
            )
    flat = x.ravel()
    for k in range(2):
        flat = flat @ arrays[f"Dense_{k}_kernel"] + arrays[f"Dense_{k}_bias"]
        flat = 1 / (1 + np.exp(-flat))
    return flat @ arrays["Dense_2_kernel"] + arrays["Dense_2_bias"]


def test_the_published_layout_is_run_as_published(tmp_path: Path) -> None:
    arrays = random_arrays((64, 128, 256), (2048, 512, 2), 4 * 4 * 256)
    np.savez(tmp_path / "weights.npz", **arrays)
    network = load_weights(tmp_path / "weights.npz")
    assert (network.hidden, network.scale, network.strides) == ("sigmoid", "range", ())
    cutouts = np.random.default_rng(5).uniform(0, 1, (23, 15, 15)).astype(np.float32)
    found = predict(network, cutouts)
    for k in (0, 11, 22):
        assert_allclose(found[k], published(arrays, cutouts[k]), atol=1e-5)
    assert np.ptp(found, axis=0).min() > 1e-3


def test_strides_and_rectified_layers(tmp_path: Path) -> None:
    arrays = random_arrays((4, 6, 5), (7, 2), 4 * 4 * 5)
    np.savez(tmp_path / "w.npz", **arrays, strides=(1, 2, 1), hidden="relu", scale="inner_peak")
    network = load_weights(tmp_path / "w.npz")
    cutouts = np.random.default_rng(6).uniform(-0.1, 1, (41, 15, 15)).astype(np.float32)
    found = predict(network, cutouts)
    assert found.shape == (41, 2)
    assert predict(network, cutouts[:0]).shape == (0, 2)
    for k in (0, 40):
        x = cutouts[k][:, :, None].astype(np.float64)
        for layer, stride in enumerate((1, 2, 1)):
            x = convolve(x, arrays[f"Conv_{layer}_kernel"], stride)
            x = np.maximum(x + arrays[f"Conv_{layer}_bias"], 0)
        hidden = np.maximum(x.ravel() @ arrays["Dense_0_kernel"] + arrays["Dense_0_bias"], 0)
        expected = hidden @ arrays["Dense_1_kernel"] + arrays["Dense_1_bias"]
        assert_allclose(found[k], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Conv_1_bias": None}, "no array Conv_1_bias"),
        ({"Conv_1_kernel": np.zeros((3, 3, 3, 6))}, "convolution 1"),
        ({"Conv_0_kernel": np.zeros((3, 3, 4))}, "two or four"),
        ({"Dense_0_kernel": np.zeros((81, 7))}, "dense layer 0"),
        ({"Dense_1_kernel": None, "Dense_1_bias": None}, "two numbers"),
        ({"strides": np.array([1, 2])}, "strides"),
        ({"hidden": np.array("tanh")}, "tanh"),
    ],
)
def test_a_file_that_is_no_network_is_refused(
    tmp_path: Path, change: dict[str, NDArray[Any] | None], message: str
) -> None:
    arrays = random_arrays((4, 6, 5), (7, 2), 4 * 4 * 5) | change
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "w.npz", **kept)
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "w.npz")
