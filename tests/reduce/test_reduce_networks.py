"""A network of one's own, of the published layout, by its file in the configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from archives import archive_of, run, star_field, write_config, write_frame
from nightloom.config import PhotometrySection, load_config
from nightloom.errors import ConfigError
from nightloom.reduce.networks import digest_of_weights, network_of

NY, NX = 150, 180
PUBLISHED = ((64, 128, 256), (2048, 512, 2), 4 * 4 * 256)


def write_weights(path: Path, *, answer: tuple[float, float]) -> None:
    """Weights of the published shapes whose last layer always answers the same row, column."""
    convs, denses, width = PUBLISHED
    arrays: dict[str, NDArray[np.float32]] = {}
    n_in = 1
    for k, n in enumerate(convs):
        arrays[f"Conv_{k}_kernel"] = np.zeros((3, 3, n_in, n), np.float32)
        arrays[f"Conv_{k}_bias"] = np.zeros(n, np.float32)
        n_in = n
    for k, n in enumerate(denses):
        arrays[f"Dense_{k}_kernel"] = np.zeros((width, n), np.float32)
        arrays[f"Dense_{k}_bias"] = np.zeros(n, np.float32)
        width = n
    arrays["Dense_2_bias"][:] = answer
    np.savez_compressed(path, **arrays)


def test_a_file_of_the_published_layout_is_used_and_its_content_counts(tmp_path: Path) -> None:
    x, y, flux = star_field(12, ny=NY, nx=NX, seed=8)
    for k in range(4):
        write_frame(tmp_path / "frames" / f"f{k}.fits", x, y, flux, ny=NY, nx=NX, minute=k, seed=k)
    more = '[photometry]\ncentroid = "ballet"\nballet_weights = "mine.npz"\n'
    config = write_config(tmp_path, more=more)
    write_weights(tmp_path / "mine.npz", answer=(7.25, 6.75))
    assert load_config(config).photometry.ballet_weights == str(tmp_path.resolve() / "mine.npz")
    assert run(config).exit_code == 0
    cube = archive_of(config).cube("Test").load()
    # Row 7.25 and column 6.75 of a cutout about a whole pixel, whatever is in it.
    inside = cube["flags"].values == 0
    assert inside.any()
    np.testing.assert_allclose((cube["x"].values % 1)[inside], 0.75, atol=1e-5)
    np.testing.assert_allclose((cube["y"].values % 1)[inside], 0.25, atol=1e-5)
    write_weights(tmp_path / "mine.npz", answer=(7.0, 7.0))
    again = run(config)
    assert again.n_made >= 1  # the cube is made again though no key has changed
    whole = archive_of(config).cube("Test").load()["x"].values[inside] % 1
    np.testing.assert_allclose(np.minimum(whole, 1 - whole), 0.0, atol=1e-5)


def test_files_that_are_none_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    more = '[photometry]\ncentroid = "ballet"\nballet_weights = "none.npz"\n'
    config = write_config(tmp_path, more=more)
    with pytest.raises(ConfigError, match=r"none\.npz"):
        run(config)
    with pytest.raises(ConfigError, match=r"none\.npz"):
        digest_of_weights(load_config(config).photometry)
    (tmp_path / "none.npz").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="ballet_weights"):
        network_of(str(tmp_path / "none.npz"))


def test_weights_count_where_a_network_is_asked_for(tmp_path: Path) -> None:
    write_weights(tmp_path / "mine.npz", answer=(7.0, 7.0))
    mine = str(tmp_path / "mine.npz")
    shipped = digest_of_weights(PhotometrySection(centroid="ballet"))
    own = digest_of_weights(PhotometrySection(centroid="ballet", ballet_weights=mine))
    assert len({"", shipped, own}) == 3
    for path in ("", mine, "none.npz"):
        assert digest_of_weights(PhotometrySection(ballet_weights=path)) == ""
