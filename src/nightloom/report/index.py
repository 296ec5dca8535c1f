"""The index: every light curve with its nights, every night with its frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nightloom.engine.recipe import Made
from nightloom.report import figures, tables
from nightloom.report.contents import PagePaths, read_columns, summarise, times_of
from nightloom.report.html import Cell, Link, Table, picture, render
from nightloom.report.series import limits, time_axis
from nightloom.schema.flags import BITS, CAVEATS
from nightloom.store.encodings import read_arrays, read_attributes

ALL = "all"


@dataclass(frozen=True, slots=True)
class IndexJob:
    pages: tuple[tuple[str, PagePaths], ...]  # of all nights: product, and what it shows
    fields: tuple[Path, ...]
    missing: tuple[tuple[str, str], ...]  # light curve, and why there is none
    attributes: dict[str, Any]


def make_index(job: IndexJob, work: Path, _: list[Any]) -> Made:
    """List all light curves and nights in `report.html`."""
    if not job.fields and not job.missing:
        return Made(outcome="empty", reason="no night is joined yet: there is nothing to list")
    curves = [_curve(product, paths) for product, paths in job.pages]
    nights = _nights(job.fields)
    missing = Table("Targets without a light curve", ("light curve", "why"), [*job.missing])
    n = len(curves)
    values = {
        "lead": f"{n} light curve{'' if n == 1 else 's'}; {len(nights.rows)} nights of a field "
        "and filter.",
        "sections": [*curves, missing, nights],
        "software": tables.software_text(job.attributes),
    }
    (work / "report.html").write_text(render("index.html.j2", values), encoding="utf-8")
    return Made()


def _curve(product: str, paths: PagePaths) -> Table:
    """A light curve: a row for all nights and one for each."""
    facts = read_attributes(paths.lightcurve)
    columns, _ = read_columns(paths, night="")
    clean = (columns["flags"] == 0) & np.isfinite(columns["flux"])
    time_d, _scale = times_of(columns)
    place = "../" + product.removeprefix("report/").removesuffix(f"/{ALL}")
    within = limits(columns["flux"], clean)
    rows: list[tuple[Cell, ...]] = []
    for night in ("", *sorted(set(columns["night"]))):
        some = columns["night"] == night if night else np.ones(len(clean), dtype=bool)
        axis = time_axis(time_d[some], columns["night"][some], scale="")
        small = figures.thumbnail(axis, columns["flux"][some], clean[some], within=within)
        rows.append(
            (
                Link(night or "all nights", f"{place}/{night or ALL}/report.html"),
                picture(small, f"light curve, {night or 'all nights'}"),
                *tables.night_cells(summarise(columns, clean, night=night)),
            )
        )
    title = " · ".join(part for part in (str(facts["target"]), str(facts["filter"])) if part)
    lead = f"field {facts['field']}, star {facts['star']}"
    return Table(title, ("night", "light curve", *tables.NIGHT_COLUMNS), rows, lead)


def _nights(fields: tuple[Path, ...]) -> Table:
    columns = (
        "field", "filter", "night", "#frames", "#measured", "#quarantined", "#flagged",
        "#FWHM (px)", "commonest reason of quarantine",
    )  # fmt: skip
    return Table("Nights", columns, [row for path in fields for row in _night_rows(path)])


def _night_rows(path: Path) -> list[tuple[Cell, ...]]:
    """A row a night of a joined store: its frames, how many are quarantined and why."""
    facts = read_attributes(path)
    columns = read_arrays(path, ["night", "frame_flags", "fwhm_px", "reason"])
    lost = columns["frame_flags"] & BITS["not_measured"] != 0
    flagged = (columns["frame_flags"] & ~np.uint32(CAVEATS) != 0) & ~lost
    rows: list[tuple[Cell, ...]] = []
    for night in sorted(set(columns["night"])):
        some = columns["night"] == night
        fwhm = columns["fwhm_px"][some & np.isfinite(columns["fwhm_px"])]
        reasons = Counter(str(reason) for reason in columns["reason"][some & lost])
        most = min(reasons.items(), key=lambda item: (-item[1], item[0]))[0] if reasons else ""
        counts = [int(np.count_nonzero(some & which)) for which in (some, ~lost, lost, flagged)]
        width = tables.number(float(np.median(fwhm)) if fwhm.size else np.nan, ".2f")
        place = (str(facts["field"]), str(facts["filter"]), str(night))
        rows.append((*place, *map(str, counts), width, most))
    return rows
