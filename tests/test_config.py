"""nightloom.toml: what is refused, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightloom.config import load_config
from nightloom.errors import ConfigError

GOOD = """
[archive]
frames = ["frames"]
[instrument.cecilia]
match = {TELESCOP = "Cecilia"}
types = {flat = "*/Flats/*"}
[catalog]
files = ["stars.ecsv"]
[[target]]
name = "HAT-P-32"
ra = 31.04283
dec = 46.68784
[photometry]
max_stars = 100
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "nightloom.toml"
    path.write_text(text)
    return path


def test_reads_and_resolves_against_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.products_path == tmp_path.resolve() / "products"
    assert config.catalog_paths() == (tmp_path.resolve() / "stars.ecsv",)
    assert config.photometry.max_stars == 100
    assert len(config.photometry.radii_fwhm) == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max_stars", "max_star"), "photometry.max_star: unknown key.*did you mean 'max_stars'"),
        (("[photometry]", "[photometri]"), "photometri: unknown key.*did you mean 'photometry'"),
        (("match", "macth"), "instrument.cecilia.macth: unknown key.*did you mean 'match'"),
        (("ra = 31.04283", "x = 3.0"), "target.0: .*needs either ra and dec, or x and y"),
        (("dec = 46.68784", "dec = 146.0"), "target.0.dec: .*less than or equal to 90"),
        (("max_stars = 100", "max_stars = 0"), "photometry.max_stars: .*greater than or equal"),
        (("max_stars = 100", "radii_px = [3.0, 2.0]"), "radii must be above zero and rise"),
        (("max_stars = 100", "annulus_fwhm = [7.0, 4.0]"), "two rising radii"),
        (("[archive]", "[archive"), "not valid TOML"),
        (('frames = ["frames"]', ""), "archive.frames: is missing"),
        (
            ("max_stars = 100", "max_stars = 100\n[[target]]\nname='HAT-P-32'\nx=1\ny=1"),
            "two targets",
        ),
    ],
)
def test_says_what_is_wrong_where(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, GOOD.replace(*change)))
    assert "nightloom.toml" in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")
