"""The demo archive from raw frames to light curves, against its truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from archives import archive_of, run
from nightloom import pipeline, stages
from nightloom.archive import Archive
from nightloom.cli.recovery import recoveries
from nightloom.config import load_config
from nightloom.engine.recipe import Outline
from nightloom.explain import explain
from nightloom.plan.recipes import make_plan
from nightloom.schema.flags import BITS
from nightloom.store.products import kind_of
from nightloom.synth.archive import write_archive
from nightloom.synth.truth import SynthSpec


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the demo archive, run once in series."""
    config = write_archive(tmp_path_factory.mktemp("demo"), SynthSpec())
    outcome = run(config)
    assert outcome.exit_code == 0
    return config


@pytest.fixture(scope="module")
def archive(demo: Path) -> Archive:
    return archive_of(demo)


@pytest.fixture(scope="module")
def matched(demo: Path, archive: Archive) -> tuple[Table, np.ndarray]:
    """True stars, and for each star of the list the index of the true one, -1 for none."""
    truth = Table.read(demo.parent / "truth" / "stars.ecsv", format="ascii.ecsv")
    reference = archive.reference("Synth-1")
    fluxes = np.load(demo.parent / "truth" / "fluxes.npz")
    paths = [str(p) for p in fluxes["Synth-1.path"]]
    k = next(i for i, p in enumerate(paths) if reference.attributes["grid_of"] in p)
    x, y = fluxes["Synth-1.x_px"][k], fluxes["Synth-1.y_px"][k]
    found = []
    for star in reference.stars.itertuples():
        away = np.hypot(x - star.x, y - star.y)
        found.append(int(np.argmin(away)) if away.min() < 1.0 else -1)
    return truth, np.array(found)


def test_every_frame_is_measured(archive: Archive) -> None:
    assert archive.frames.groupby(["image_type", "state"]).size().to_dict() == {
        ("bias", "used"): 27,
        ("dark", "used"): 21,
        ("flat", "used"): 21,
        ("science", "measured"): 180,
    }
    assert set(archive.ledger["state"]) == {"done", "waiting"}  # pages were not asked for


def test_injected_transit_is_found(demo: Path, archive: Archive) -> None:
    found = recoveries(archive, demo.parent)
    assert len(found) == 1
    assert found[0].n_points > 165
    assert found[0].sigmas < 3
    assert found[0].depth_err < 0.001


def test_positions_are_those_of_the_truth(
    demo: Path, archive: Archive, matched: tuple[Table, np.ndarray]
) -> None:
    """Trap 1 and 4 on a whole archive: drift, rotation and a flip, each star where it is."""
    _, truth_of = matched
    cube = archive.cube("Synth-1").load()
    fluxes = np.load(demo.parent / "truth" / "fluxes.npz")
    row_of = {str(p).removeprefix("frames/"): k for k, p in enumerate(fluxes["Synth-1.path"])}
    rows = np.array([row_of[str(p)] for p in cube["path"].values])
    bright = (truth_of >= 0) & (fluxes["Synth-1.flux_e"][0][truth_of] > 2e4)
    clean = (cube["flags"].values == 0)[:, bright] & (cube["frame_flags"].values == 0)[:, None]
    dx = cube["x"].values[:, bright] - fluxes["Synth-1.x_px"][rows][:, truth_of[bright]]
    dy = cube["y"].values[:, bright] - fluxes["Synth-1.y_px"][rows][:, truth_of[bright]]
    away = np.hypot(dx, dy)[clean]
    assert len(away) > 3000
    assert np.percentile(away, 99) < 0.1
    assert abs(np.mean(dx[clean])) < 0.01
    assert abs(np.mean(dy[clean])) < 0.01


def test_fluxes_are_those_of_the_truth(
    demo: Path, archive: Archive, matched: tuple[Table, np.ndarray]
) -> None:
    """The largest aperture holds what a Moffat has within it, to a per cent."""
    _, truth_of = matched
    cube = archive.cube("Synth-1").load()
    fluxes = np.load(demo.parent / "truth" / "fluxes.npz")
    row_of = {str(p).removeprefix("frames/"): k for k, p in enumerate(fluxes["Synth-1.path"])}
    rows = np.array([row_of[str(p)] for p in cube["path"].values])
    expected = fluxes["Synth-1.flux_e"][rows][:, truth_of]
    bright = (truth_of >= 0) & (expected[0] > 1e5) & (np.arange(len(truth_of)) > 0)
    clean = (cube["flags"].values == 0) & (cube["frame_flags"].values == 0)[:, None]
    clean &= bright[None, :]
    aperture = 29  # 3.2 FWHM
    r = cube["radius_fwhm"].values[aperture]
    beta = 3.0
    alpha = 0.5 / np.sqrt(2 ** (1 / beta) - 1)
    inside = 1 - (1 + (r / alpha) ** 2) ** (1 - beta)
    ratio = (cube["flux"].values[:, :, aperture] / expected)[clean]
    # The annulus holds wings of the star itself: some thousandths are taken off as background.
    assert np.median(ratio) == pytest.approx(inside, abs=0.01)


def test_errors_of_constant_stars_are_right(
    archive: Archive, matched: tuple[Table, np.ndarray]
) -> None:
    truth, truth_of = matched
    curves = archive.lightcurves("Synth-1").load()
    pulls = []
    for star, true in enumerate(truth_of):
        if true < 0 or truth["kind"][true] != "constant":
            continue
        good = curves["flags"].values[star] == 0
        good &= np.isfinite(curves["flux"].values[star])
        if good.sum() > 100:
            away = curves["flux"].values[star][good] - 1
            pulls.append(np.std(away / curves["flux_err"].values[star][good]))
    assert len(pulls) > 40
    assert 0.85 < np.median(pulls) < 1.2


def test_times_are_astropys(demo: Path, archive: Archive) -> None:
    """BJD_TDB at mid-exposure; the truth is astropy's own light travel time."""
    curve = archive.lightcurve("Synth-1 transit").load()
    truth = Table.read(demo.parent / "truth" / "frames.ecsv", format="ascii.ecsv")
    bjd = {str(row["path"]).removeprefix("frames/"): float(row["bjd_tdb"]) for row in truth}
    expected = np.array([bjd[str(p)] for p in curve["path"].values])
    assert np.abs(curve["bjd_tdb"].values - expected).max() * 86400 < 0.1
    assert float(np.median(curve["flux"])) == pytest.approx(1.0, abs=2e-3)


def test_clouds_and_trails_are_flagged(demo: Path, archive: Archive) -> None:
    cube = archive.cube("Synth-1").load()
    truth = Table.read(demo.parent / "truth" / "frames.ecsv", format="ascii.ecsv")
    kinds = {str(row["path"]).removeprefix("frames/"): str(row["kind"]) for row in truth}
    kind = np.array([kinds[str(p)] for p in cube["path"].values])
    flags = cube["frame_flags"].values
    np.testing.assert_array_equal(flags & BITS["trailed"] != 0, kind == "trailed")
    np.testing.assert_array_equal(flags & BITS["cloudy"] != 0, kind == "cloudy")


def test_masters_are_the_truth(archive: Archive) -> None:
    product = next(p for p in archive.ledger["product"] if p.startswith("master/flat/"))
    flat = archive.master(product)["level"].values
    assert np.median(flat) == pytest.approx(1.0, abs=1e-3)
    assert flat.std() > 0.02  # vignetting and dust are in it


def test_second_run_makes_nothing(demo: Path) -> None:
    outcome = run(demo)
    assert outcome.n_made == 0
    assert not outcome.failed


def changed(demo: Path, tmp_path: Path, old: str, new: str) -> Path:
    """The demo's configuration with one change, in a file of its own over the same products."""
    folder = demo.parent
    text = demo.read_text().replace('frames = ["frames"]', f'frames = ["{folder}/frames"]')
    text = text.replace('products = "products"', f'products = "{folder}/products"')
    text = text.replace('"catalogue.ecsv"', f'"{folder}/catalogue.ecsv"')
    assert old in text
    path = tmp_path / "nightloom.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def states_with(config: Path) -> dict[str, list[str]]:
    """What each product's explanation says under a configuration."""
    loaded = load_config(config)
    root = loaded.products_path
    plan = make_plan(pipeline.look(loaded).frames, loaded)
    return {r.product: explain(root, r) for r in pipeline.all_recipes(root, plan, loaded)}


def test_outlines_are_those_of_the_recipes(demo: Path) -> None:
    config = load_config(demo)
    root = config.products_path
    plan = make_plan(pipeline.read_frames(root), config)
    kinds = set()
    for outline in stages.all_recipes(root, plan, config):
        if isinstance(outline, Outline):
            recipe = outline.write()
            known = (recipe.fingerprint, recipe.needs, recipe.uses)
            assert (outline.fingerprint, outline.needs, outline.uses) == known
            kinds.add(kind_of(recipe.product))
    assert {"master", "cube"} <= kinds


def due(reasons: dict[str, list[str]]) -> set[str]:
    """Kinds of the products that would be made again."""
    return {
        product.split("/")[0]
        for product, why in reasons.items()
        if not why[0].startswith("is up to date") and not product.startswith("report/")
    }


def test_a_setting_makes_again_what_depends_on_it(demo: Path, tmp_path: Path) -> None:
    text = "[catalog]"
    radii = states_with(changed(demo, tmp_path, text, "[photometry]\nradii_px = [3.5]\n" + text))
    assert due(radii) == {"cube"}  # field, ensemble, light curve follow once the cube is new
    assert any("radii_px" in why for why in radii["cube/Synth-1/2024-10-01/R"])
    exclude = states_with(
        changed(demo, tmp_path, text, '[gather]\nexclude = ["background_level > 300"]\n' + text)
    )
    assert due(exclude) == {"ensemble"}
    noise = states_with(changed(demo, tmp_path, "read_noise_e = 8.0", "read_noise_e = 9.0"))
    assert due(noise) == {"cube"}


def test_a_new_target_makes_no_cube_again(
    demo: Path, tmp_path: Path, matched: tuple[Table, np.ndarray]
) -> None:
    truth, truth_of = matched
    star = truth[truth_of[20]]
    target = f'[[target]]\nname = "New"\nra = {star["ra_deg"]}\ndec = {star["dec_deg"]}\n'
    target += "epoch = 2016.0\n"
    config = changed(demo, tmp_path, "[[target]]", target + "[[target]]")
    assert "cube" not in due(states_with(config))
    outcome = run(config)
    assert outcome.exit_code == 0
    # The new star list, the curves with one comparison less, and three light curves.
    assert outcome.n_made == 5
    assert archive_of(config).lightcurve("New").attrs["target"] == "New"
    run(demo)


def test_excluded_epochs_are_flagged_without_reduction(demo: Path, tmp_path: Path) -> None:
    change = '[gather]\nexclude = ["background_level > 320", "night == 2024-10-03"]\n[catalog]'
    config = changed(demo, tmp_path, "[catalog]", change)
    run(config)
    curve = archive_of(config).lightcurve("Synth-1 transit").load()
    out = curve["flags"].values & BITS["excluded"] != 0
    assert out[curve["night"].values == "2024-10-03"].all()
    assert 60 < out.sum() < 180
    assert np.isfinite(curve["flux"].values[out]).any()  # flagged, not taken away
    run(demo)


def test_notebook_runs_on_the_demo(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From open_archive to a light curve with plots, as it lies in notebooks/."""
    import nbformat
    from nbclient import NotebookClient

    path = Path(__file__).resolve().parents[2] / "notebooks" / "light_curve.ipynb"
    monkeypatch.setenv("NIGHTLOOM_PRODUCTS", str(demo.parent / "products"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=path.parent)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3
    assert not any(out.output_type == "error" for out in outputs)
