"""Pages of HTML that stand alone: one a light curve and night, one over all nights, an index.

A page is a product like any other: made from published versions, and equal when made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightloom.engine.recipe import Made, Recipe
from nightloom.report import figures, images, tables
from nightloom.report.contents import (
    Contents,
    PagePaths,
    nights_of,
    paths_of,
    read_contents,
    summarise,
)
from nightloom.report.html import Link, Picture, Table, picture, render, wide_picture
from nightloom.report.index import ALL, IndexJob, make_index
from nightloom.report.series import TimeAxis, time_axis
from nightloom.schema.flags import CAVEATS
from nightloom.store.encodings import read_attributes
from nightloom.store.products import current, kind_of, published_fingerprint, read_attempt
from nightloom.store.provenance import provenance

PAGE_VERSION = 2
INDEX = "report/index"
MAX_NIGHT_PANELS = 12
PEAK_BYTES = 1 << 30


class PageSettings(BaseModel):
    """What a page depends on besides the stores that it shows."""

    model_config = ConfigDict(frozen=True)

    night: str  # empty: all nights


@dataclass(frozen=True, slots=True)
class PageJob:
    product: str
    paths: PagePaths
    night: str
    nights: tuple[str, ...]
    attributes: dict[str, Any]


def page_recipes(root: Path, recipes: Sequence[Recipe]) -> list[Recipe]:
    """The pages that the light curves among these recipes call for, and the index of all.

    A light curve that is not published yet gives its page over all nights; one that came out
    empty gives none, and the index says why.
    """
    pages: list[Recipe] = []
    missing: list[tuple[str, str]] = []
    for recipe in recipes:
        if kind_of(recipe.product) != "lightcurve":
            continue
        reason = _why_empty(root, recipe)
        if reason:
            missing.append((recipe.product, reason))
        else:
            pages += _pages_of(root, recipe.product)
    fields = [r.product for r in recipes if kind_of(r.product) == "field"]
    return [*pages, _index_recipe(root, pages, fields, tuple(missing))]


def page_product(lightcurve: str, night: str) -> str:
    """Id of a light curve's page; night "": all nights."""
    return f"report/{lightcurve.split('/', 1)[1]}/{night or ALL}"


def _why_empty(root: Path, recipe: Recipe) -> str:
    attempt = read_attempt(root, recipe.product)
    if attempt is None or attempt.outcome != "empty" or attempt.fingerprint != recipe.fingerprint:
        return ""
    return attempt.reason


def _pages_of(root: Path, lightcurve: str) -> list[Recipe]:
    path = current(root, lightcurve)
    if path is None:
        settings = PageSettings(night="")
        return [
            Recipe(
                page_product(lightcurve, ""), ((lightcurve, ""),), settings, PAGE_VERSION, job=None,
                finish=make_page, needs=(lightcurve,),
            )
        ]  # fmt: skip
    nights = nights_of(path)
    facts = read_attributes(path)
    shown = (f"stars/{facts['field']}", f"reference/{facts['field']}")
    inputs = tuple((name, published_fingerprint(root, name)) for name in (lightcurve, *shown))
    recipes = []
    for night in (*nights, ""):
        product, settings = page_product(lightcurve, night), PageSettings(night=night)
        recipe = Recipe(
            product, inputs, settings, PAGE_VERSION, job=None, finish=make_page,
            needs=(lightcurve,), uses=shown, peak_bytes=PEAK_BYTES,
        )  # fmt: skip
        attributes = provenance(
            product, fingerprint=recipe.fingerprint, inputs=inputs, settings=settings,
            algorithm=PAGE_VERSION,
        )  # fmt: skip
        job = PageJob(product, paths_of(root, path, night=night), night, nights, attributes)
        recipes.append(replace(recipe, job=job))
    return recipes


def _index_recipe(
    root: Path, pages: Sequence[Recipe], fields: Sequence[str], missing: tuple[tuple[str, str], ...]
) -> Recipe:
    inputs = tuple((page.product, page.fingerprint) for page in pages)
    inputs += tuple((name, published_fingerprint(root, name)) for name in fields)
    inputs += tuple((name, f"empty: {reason}") for name, reason in missing)
    recipe = Recipe(
        INDEX, inputs, None, PAGE_VERSION, job=None, finish=make_index,
        uses=(*(page.product for page in pages), *fields),
    )  # fmt: skip
    attributes = provenance(
        INDEX, fingerprint=recipe.fingerprint, inputs=inputs, settings=None, algorithm=PAGE_VERSION
    )
    whole = tuple(
        (page.product, page.job.paths) for page in pages if page.job and not page.job.night
    )
    paths = tuple(path for name in fields if (path := current(root, name)) is not None)
    return replace(recipe, job=IndexJob(whole, paths, missing, attributes))


def make_page(job: PageJob, work: Path, _: list[Any]) -> Made:
    """Draw and write `report.html`."""
    contents = read_contents(job.paths, night=job.night)
    labels = {int(star): f"C{k + 1}" for k, star in enumerate(contents.comparisons.star)}
    what = " · ".join(
        part for part in (str(contents.facts["target"]), str(contents.facts["filter"])) if part
    )
    title = f"{what} · {job.night or 'all nights'}"
    provenance_rows, settings = tables.provenance_rows(job.paths.there(), job.attributes)
    axis = time_axis(contents.time_d, contents.columns["night"], scale=contents.time_scale)
    values = {
        "title": title,
        "links": _links(job),
        "lead": _lead(contents, job),
        "facts": tables.facts(contents),
        "caveats": tables.caveats(contents),
        "curves": _curves(contents, axis, what),
        "field": _field(contents, labels),
        "choices": _choices(contents, axis, labels),
        "systematics": _systematics(contents, axis),
        "tables": [
            *([] if job.night else [_nights(contents, job)]),
            tables.budget_table(contents),
            tables.comparisons_table(contents, labels),
            tables.flags_table(contents),
            tables.quarantined_table(contents),
        ],
        "provenance": provenance_rows,
        "settings": settings,
        "software": tables.software_text(job.attributes),
    }
    (work / "report.html").write_text(render("page.html.j2", values), encoding="utf-8")
    return Made()


def _links(job: PageJob) -> list[Link]:
    """To the index, to all nights, and to the nights before and after."""
    links = [Link("all light curves", "../../../index/report.html")]
    if not job.night:
        return [*links, Link("all nights", "")]
    links.append(Link("all nights", f"../{ALL}/report.html"))
    here = job.nights.index(job.night)
    near = range(max(0, here - 1), min(len(job.nights), here + 2))
    links += [
        Link(job.nights[k], "" if k == here else f"../{job.nights[k]}/report.html") for k in near
    ]
    return links


def _lead(contents: Contents, job: PageJob) -> str:
    nights = 1 if job.night else len(job.nights)
    over = f"night of {job.night}" if job.night else f"{nights} night{'s' if nights > 1 else ''}"
    return (
        f"Differential photometry in field {contents.facts['field']}, {over}. Flux is relative, of "
        "one scale over all nights."
    )


def _curves(contents: Contents, axis: TimeAxis, what: str) -> list[Picture]:
    columns, clean = contents.columns, contents.clean
    flux, flux_err, night = columns["flux"], columns["flux_err"], columns["night"]
    scale, time_d = contents.time_scale, contents.time_d
    caption = (
        "Error bars are those of the photometry; means weigh by them and leave flagged points out."
        " Triangles at the edge stand for points beyond it."
    )
    if len(axis.names) <= 1:
        figure = figures.light_curve(axis, flux, flux_err, clean, title=f"Light curve of {what}")
        return [wide_picture(figure, f"Light curve of {what}: relative flux against time", caption)]
    figure = figures.overview(time_d, night, flux, clean, scale=scale, title=f"{what}: all nights")
    pictures = [wide_picture(figure, f"Relative flux of {what} against time, with nightly medians")]
    if len(axis.names) <= MAX_NIGHT_PANELS:
        figure = figures.night_panels(
            time_d, night, flux, flux_err, clean, scale=scale,
            title="Night by night, at one scale of time and flux",
        )  # fmt: skip
    else:
        title = f"{what}: night beside night"
        figure = figures.light_curve(axis, flux, flux_err, clean, title=title)
    return [*pictures, wide_picture(figure, f"Light curve of {what}, night by night", caption)]


def _field(contents: Contents, labels: dict[int, str]) -> list[Picture]:
    reference, facts = contents.reference, contents.facts
    if reference is None:
        return []
    star, name = int(facts["star"]), str(facts["target"])
    field = images.field_image(
        reference, star=star, name=name, weight=contents.weight, labels=labels,
        title=f"Reference stack of {facts['field']}",
    )  # fmt: skip
    radius = float(contents.radius_px[facts["aperture"]])
    inner, outer = contents.annulus_px
    cut = images.cutout(
        reference, star=star, radius_px=radius, annulus_px=contents.annulus_px,
        title=f"{name} in the stack",
    )  # fmt: skip
    profile = images.profile(
        reference, star=star, radius_px=radius, title="Radial profile of the stack"
    )
    return [
        picture(
            field, f"Reference stack with the star list, {name} and its comparison stars marked",
            "Inverted grey, asinh stretch. C1, C2, ... are the comparison stars that weigh most; "
            "crosses are catalogue stars where the plate puts them.",
        ),
        picture(
            cut, f"Cutout around {name} with aperture and annulus",
            f"Aperture {tables.aperture_text(contents)}; annulus {inner:.1f} to {outer:.1f} px, at "
            "the median FWHM of the frames.",
        ),
        picture(
            profile, "Radial profile of clean stars and of the target, with FWHM and aperture",
            "Rings of the clean stars nearest in brightness: median, 16th and 84th percentile. FWHM"
            " and model are those before the pixels blur them; the curve is as pixels see it.",
        ),
    ]  # fmt: skip


def _choices(contents: Contents, axis: TimeAxis, labels: dict[int, str]) -> list[Picture]:
    columns, clean = contents.columns, contents.clean
    best = contents.comparisons
    pictures = []
    if best.star.size:
        figure = figures.comparison_stars(
            axis, best.flux, best.clean, best.weight, [labels[int(k)] for k in best.star],
            title="Comparison stars that weigh most, each against its own comparisons",
        )  # fmt: skip
        pictures.append(
            picture(
                figure, "Light curves of the best comparison stars with their weights",
                "Weights are those at the target's aperture; the curves are at each star's own.",
            )
        )  # fmt: skip
    figure = figures.raw_curves(
        axis, columns["raw_flux"], columns["comparison"], clean,
        unit="ADU" if contents.facts["flux_units"] == "adu" else "e⁻",
        title="Before division: the target and its comparison",
    )  # fmt: skip
    pictures.append(wide_picture(figure, "Raw flux of the target and the comparison's factor"))
    if np.isfinite(contents.scatter * contents.radius_px).any():
        figure = figures.aperture_choice(
            contents.radius_px, contents.scatter, contents.kind,
            chosen=int(contents.facts["aperture"]), label=tables.aperture_text(contents),
            title="Scatter of the target against aperture, over all nights",
        )  # fmt: skip
        pictures.append(
            wide_picture(figure, "Point-to-point scatter against aperture, the chosen one marked")
        )
    return pictures


def _systematics(contents: Contents, axis: TimeAxis) -> list[Picture]:
    c = contents.columns
    clean = np.asarray(c["frame_flags"] & ~np.uint32(CAVEATS) == 0)
    # Fluxes depend on the gain, backgrounds too: their unit is the flux's.
    unit = "ADU" if contents.facts["flux_units"] == "adu" else "e⁻"
    rows = [
        ("shift (px)", [("x", c["shift_x_px"]), ("y", c["shift_y_px"])]),
        # Cut where no mount stands: on either side of a flip there are 0 and 180.
        ("rotation (deg)", [("", (c["rotation_deg"] + 90) % 360 - 90)]),
        ("FWHM (px)", [("", c["fwhm_px"])]),
        ("elongation", [("", c["elongation"])]),
        (f"sky ({unit}/px)", [("frame", c["background_level"]), ("target", c["background"])]),
        ("transparency", [("", c["transparency"])]),
        ("airmass", [("", c["airmass"])]),
    ]
    if not any(np.isfinite(values).any() for _, curves in rows for _, values in curves):
        return []
    figure = figures.systematics(axis, rows, clean, title="The frames: what may move the curve")
    caption = "Grey: frames with a flag. Shifts and rotation are those against the reference."
    alt = "Shifts, rotation, FWHM, elongation, sky, transparency and airmass against time"
    return [wide_picture(figure, alt, caption)]


def _nights(contents: Contents, job: PageJob) -> Table:
    rows = [summarise(contents.columns, contents.clean, night=night) for night in job.nights]
    return tables.nights_table(rows, {n: f"../{n}/report.html" for n in job.nights})
