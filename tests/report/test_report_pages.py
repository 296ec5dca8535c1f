"""Pages: which there are, that they stand alone, tell what the stores hold, and come out equal."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nightloom.engine.recipe import Failed, Finished, Recipe
from nightloom.engine.serial import make_serial
from nightloom.report.contents import nights_of, paths_of, read_contents, summarise
from nightloom.report.index import make_index
from nightloom.report.pages import page_recipes
from nightloom.report.tables import quarantined_table
from nightloom.store.products import Attempt, current, require, write_attempt

# One process writes the products that these tests share.
pytestmark = pytest.mark.xdist_group("report_pages")

PAGE = "report/Fake-Sons-1/R/"
NIGHTS = ("2024-10-01", "2024-10-02")


class _Page(HTMLParser):
    """Collects what a page refers to and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._styled = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        self._styled = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.text += " "
        self._styled = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._styled else data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _make(root: Path, recipes: list[Recipe]) -> None:
    ends = [event for event in make_serial(root, recipes) if not isinstance(event, Finished)]
    assert {type(event).__name__ for event in ends} <= {"Started", "TaskDone"}, ends


def _link(root: Path, product: str) -> Path:
    return root / product / "report.html"


@pytest.fixture(scope="module")
def made(write_fake: Callable[..., object], tmp_path_factory: pytest.TempPathFactory):
    fake = write_fake(tmp_path_factory.mktemp("made"))
    _make(fake.root, page_recipes(fake.root, fake.recipes))
    return fake


def test_a_page_a_night_one_over_all_and_an_index(products) -> None:
    recipes = page_recipes(products.root, products.recipes)
    names = [recipe.product for recipe in recipes]
    assert names == [PAGE + NIGHTS[0], PAGE + NIGHTS[1], PAGE + "all", "report/index"]
    assert {recipe.needs for recipe in recipes[:3]} == {("lightcurve/Fake-Sons-1/R",)}
    assert recipes[3].uses == (*names[:3], "field/Fake-1/R")
    assert len({recipe.fingerprint for recipe in recipes}) == 4
    for recipe in recipes:
        assert pickle.loads(pickle.dumps(recipe.job)) == recipe.job


def test_before_there_is_a_light_curve_only_the_page_over_all_is_expected(tmp_path, products):
    recipes = page_recipes(tmp_path, products.recipes)
    assert [recipe.product for recipe in recipes] == [PAGE + "all", "report/index"]
    assert recipes[0].needs == ("lightcurve/Fake-Sons-1/R",)


def test_an_archive_without_targets_has_an_index(products) -> None:
    (index,) = page_recipes(products.root, products.recipes[:1])
    assert index.product == "report/index"


def test_an_empty_light_curve_has_no_page_and_the_index_says_why(tmp_path, products) -> None:
    curve = products.recipes[-1]
    reason = "Fake & Sons 1 lies outside every field"
    write_attempt(tmp_path, curve.product, Attempt(curve.fingerprint, "empty", reason=reason))
    (index,) = page_recipes(tmp_path, [curve])
    _make(tmp_path, [index])
    assert reason in _Page(_link(tmp_path, "report/index")).text
    other = page_recipes(tmp_path, [replace(curve, version=2)])
    assert [recipe.product for recipe in other] == [PAGE + "all", "report/index"]


def test_an_index_of_nothing_is_empty(tmp_path) -> None:
    (index,) = page_recipes(tmp_path, [])
    made = make_index(index.job, tmp_path, [])
    assert (made.outcome, bool(made.reason)) == ("empty", True)


def test_pages_stand_alone(made) -> None:
    for name in (*(PAGE + night for night in (*NIGHTS, "all")), "report/index"):
        path = _link(made.root, name)
        page = _Page(path)
        pictures = page.of("img")
        assert pictures
        assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
        assert all(picture["alt"] for picture in pictures)
        assert not page.of("script")
        assert not page.of("link")
        assert not re.search(r"https?://|url\(|@import", path.read_text(encoding="utf-8"))
        assert str(made.root) not in path.read_text(encoding="utf-8")


def test_every_link_leads_to_a_page(made) -> None:
    n_links = 0
    for name in (*(PAGE + night for night in (*NIGHTS, "all")), "report/index"):
        folder = made.root / name
        for link in _Page(folder / "report.html").of("a"):
            assert (folder / str(link["href"])).exists(), (name, link)
            n_links += 1
    assert n_links >= 3 + 3 + 3 + 1 + 2


def test_equal_when_made_again_elsewhere(made, write_fake, tmp_path) -> None:
    other = write_fake(tmp_path)
    _, second, _, index = page_recipes(other.root, other.recipes)
    _make(other.root, [second, index])
    for name in (PAGE + NIGHTS[1], "report/index"):
        assert require(made.root, name).name == require(other.root, name).name
        assert require(made.root, name).read_bytes() == require(other.root, name).read_bytes()


def test_another_light_curve_makes_other_pages(products, write_fake, tmp_path) -> None:
    other = write_fake(tmp_path, seed=2)
    before = page_recipes(products.root, products.recipes)
    after = page_recipes(other.root, other.recipes)
    for one, two in zip(before, after, strict=True):
        assert one.product == two.product
        assert one.fingerprint != two.fingerprint


def test_numbers_of_a_night_are_those_of_its_points(products) -> None:
    lightcurve = require(products.root, "lightcurve/Fake-Sons-1/R")
    assert nights_of(lightcurve) == NIGHTS
    contents = read_contents(paths_of(products.root, lightcurve, night=NIGHTS[0]), night=NIGHTS[0])
    summary = summarise(contents.columns, contents.clean, night="")
    mine = products.night == NIGHTS[0]
    clean = mine & (products.flags == 0) & np.isfinite(products.flux)
    assert (summary.n_frames, summary.n_quarantined) == (60, 1)
    assert (summary.n_points, summary.n_clean) == (59, int(clean.sum()))
    expected = np.std(np.diff(products.flux[clean])) / np.sqrt(2)
    assert summary.scatter == pytest.approx(expected)
    assert contents.annulus_px == pytest.approx(
        (4 * summary.fwhm_px, 7 * summary.fwhm_px), rel=1e-6
    )


def test_comparisons_are_the_heaviest_and_never_the_target(products) -> None:
    lightcurve = require(products.root, "lightcurve/Fake-Sons-1/R")
    best = read_contents(paths_of(products.root, lightcurve, night=""), night="").comparisons
    assert list(best.star) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert best.weight == pytest.approx(products.weight[best.star])
    assert best.flux.shape == (8, 120)


def test_a_page_says_what_was_flagged_quarantined_assumed_and_made_of(made) -> None:
    text = _Page(_link(made.root, PAGE + NIGHTS[0])).text
    for said in (
        "59; 55 without a flag",
        "cloudy 3",
        "saturated 1",
        "2024-10-01/light_017.fits",
        "does not align with the reference: 3 < 5 & <nothing> fits",
        "gain unknown in 59 of 59 frames",
        "1.2 FWHM = 4.8",
        require(made.root, "lightcurve/Fake-Sons-1/R").stem,
        require(made.root, f"cube/Fake-1/{NIGHTS[0]}/R").stem,
        require(made.root, PAGE + NIGHTS[0]).stem,
    ):
        assert said in text, said
    assert "Quarantined frames" not in _Page(_link(made.root, PAGE + NIGHTS[1])).text


def test_the_index_counts_frames_and_points(made) -> None:
    text = _Page(_link(made.root, "report/index")).text
    for said in ("Fake & Sons 1 · R", "2024-10-01", "1 light curve; 2 nights"):
        assert said in text


def test_times_of_quarantined_frames_are_utc(products) -> None:
    lightcurve = require(products.root, "lightcurve/Fake-Sons-1/R")
    contents = read_contents(paths_of(products.root, lightcurve, night=""), night="")
    (row,) = quarantined_table(contents).rows
    # JD 2460585.3 is 2024-10-01 19:12; the frame is 17 times 5 minutes later.
    assert row[1] == "2024-10-01 20:37:00"


def test_no_place_on_the_sky_and_a_lost_night_have_their_pages(write_fake, tmp_path) -> None:
    fake = write_fake(tmp_path, on_sky=False, lost_night=True)
    first, _, whole, index = page_recipes(tmp_path, fake.recipes)
    _make(tmp_path, [first, whole, index])
    text = _Page(_link(tmp_path, PAGE + "all")).text
    for said in ("no plate", "times are JD UTC", "no airmass"):
        assert said in text
    lost = _Page(_link(tmp_path, PAGE + NIGHTS[0])).text
    for said in ("60; 60 quarantined", "0; 0 without a flag", "light_059.fits"):
        assert said in lost


def test_a_lost_store_is_said_and_not_guessed(write_fake, tmp_path) -> None:
    fake = write_fake(tmp_path)
    joined = current(tmp_path, "field/Fake-1/R")
    assert joined is not None
    joined.rename(joined.with_name("gone"))
    night = page_recipes(tmp_path, fake.recipes)[0]
    (failed,) = [e for e in make_serial(tmp_path, [night]) if isinstance(e, Failed)]
    assert failed.kind == "product"
    assert "what it was made of is gone" in failed.reason


def test_page_tells_the_noise_budget_and_what_is_unknown_of_it(made) -> None:
    text = _Page(_link(made.root, PAGE + "all")).text
    budget = text.split("Noise budget", 1)[1].split("Comparison stars", 1)[0]
    assert "photons of the star unknown gain unknown" in budget
    assert "star and sky together, as flux_err has them 0.210" in budget
    assert "comparison stars 0.070" in budget
    assert "unknown: aperture_m of the instrument, height of the site" in budget
    found = re.search(r"scatter from point to point (\d\.\d+)", budget)
    assert found is not None
    assert float(found[1]) == pytest.approx(0.3, rel=0.15)
