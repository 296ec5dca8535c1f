"""What a page says in words and rows: facts, caveats, flags, quarantined frames, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from nightloom.gather.budget import noise_budget
from nightloom.report.contents import Contents, NightSummary, flag_counts, summarise
from nightloom.report.html import Cell, Link, Table
from nightloom.report.series import point_to_point
from nightloom.schema.flags import BITS
from nightloom.store.encodings import read_attributes

MAX_ROWS = 200
MAX_INPUTS = 6
JD_UNIX = 2440587.5
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def percent(value: float) -> str:
    """A relative number in per cent, three digits."""
    return f"{100 * value:.3g} %" if np.isfinite(value) else "unknown"


def number(value: float, form: str) -> str:
    """A number, or a word where there is none."""
    return format(value, form) if np.isfinite(value) else "unknown"


def aperture_text(contents: Contents) -> str:
    """The chosen aperture as it was configured and as it came out in pixels."""
    fixed = contents.facts["aperture_radius_px"]
    if fixed is not None:
        return f"{fixed:g} px"
    radius = contents.radius_px[contents.facts["aperture"]]
    if contents.facts["aperture_kind"] == "optimal":
        return f"weighted by the profile to {number(radius, '.2f')} px"
    return f"{contents.facts['aperture_radius_fwhm']:g} FWHM = {number(radius, '.2f')} px"


def facts(contents: Contents) -> list[tuple[str, str]]:
    """The page's numbers at a glance."""
    night = summarise(contents.columns, contents.clean, night="")
    scale = np.nan if contents.plate is None else contents.plate.scale_arcsec
    time = contents.time_d[np.isfinite(contents.time_d)]
    seeing = f" = {night.fwhm_px * scale:.2f}″" if np.isfinite(night.fwhm_px * scale) else ""
    rows = [
        ("field, star", f"{contents.facts['field']}, star {contents.facts['star']}"),
        ("ra, dec (deg, ICRS)", _direction(contents)),
        ("aperture", aperture_text(contents)),
        ("frames", f"{night.n_frames}; {night.n_quarantined} quarantined"),
        ("points", f"{night.n_points}; {night.n_clean} without a flag"),
        ("point-to-point scatter", percent(night.scatter)),
        ("median error of a point", percent(night.error)),
        ("comparison stars", str(int((contents.weight > 0).sum()))),
        ("exposure", _range(contents.columns["exposure_s"], "g", "s")),
        ("FWHM, median", number(night.fwhm_px, ".2f") + " px" + seeing),
        ("airmass", _range(contents.columns["airmass"], ".2f", "")),
    ]
    if time.size:
        text = f"{time.min():.5f} to {time.max():.5f}"
        rows.insert(2, (f"time ({contents.time_scale}, mid-exposure)", text))
    return rows


def _direction(contents: Contents) -> str:
    ra, dec = contents.facts["ra_deg"], contents.facts["dec_deg"]
    return "unknown" if ra is None or dec is None else f"{ra:.5f}, {dec:+.5f}"


def _range(values: Any, form: str, unit: str) -> str:
    good = values[np.isfinite(values)]
    if not good.size:
        return "unknown"
    low, high = format(good.min(), form), format(good.max(), form)
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def caveats(contents: Contents) -> list[str]:
    """What a reader must know before believing the curve."""
    columns, star = contents.columns, contents.star
    measured = contents.measured
    n = int(measured.sum())
    uncalibrated, gainless, estimated, guessed = (
        int(np.count_nonzero(columns["frame_flags"][measured] & BITS[name]))
        for name in ("calibration_missing", "gain_assumed", "gain_estimated", "saturation_guessed")
    )
    plate = contents.plate
    n_comparisons = int((contents.weight > 0).sum())
    said = [
        (uncalibrated > 0, f"no dark or no flat could be applied to {uncalibrated} of {n} frames"),
        (estimated > 0, f"gain estimated from the sky of the night in {estimated} of {n} frames"),
        (guessed > 0, f"saturation guessed in {guessed} of {n} frames, from pixels that pile up"),
        (gainless > 0, f"gain unknown in {gainless} of {n} frames: fluxes there are in ADU, and "
         "errors come from the scatter of the sky"),
        (plate is None, "no plate: the star list has no directions"),
        (plate is not None and plate.n_matched == 0, "the plate is the header's own, not checked"),
        (contents.time_scale != "BJD_TDB", "the target's direction is unknown: times are JD UTC "
         "and not barycentric"),
        (not np.isfinite(columns["airmass"]).any(), "no airmass: site or direction unknown"),
        (bool(star.get("appended")), "the target was not detected in the reference: it is "
         "measured where it should be"),
        (bool(star.get("saturated")), "the target is saturated in the reference"),
        (bool(star.get("blended")), "another star lies within two FWHM of the target"),
        (contents.reference is None, "the star list has changed since: no images"),
        (n_comparisons < 3, f"only {n_comparisons} comparison stars"),
        (2 * int(contents.clean.sum()) < n, "more than half of the points are flagged"),
    ]  # fmt: skip
    return [text for holds, text in said if holds]


def budget_table(contents: Contents) -> Table:
    """What a point errs by, cause by cause, and what it scatters by."""
    rows: list[tuple[Cell, ...]] = []
    for term in noise_budget(contents.columns, contents.clean, contents.facts):
        value = term.value if term.name == "ratio" else 100 * term.value
        rows.append(
            (term.meaning, number(value, ".2f" if term.name == "ratio" else ".3f"), term.note)
        )
    lead = (
        "Errors of one point relative to the flux, medians over the points without a flag. "
        "Scintillation is not part of the error bars."
    )
    return Table("Noise budget", ("", "#%", ""), rows, lead)


def flags_table(contents: Contents) -> Table:
    """How many points each flag marks."""
    rows: list[tuple[Cell, ...]] = [
        (name, str(count), meaning) for name, count, meaning in flag_counts(contents.columns)
    ]
    return Table("Flagged points", ("flag", "#points", "meaning"), rows)


def quarantined_table(contents: Contents) -> Table:
    """Frames that were not measured, with the reason of each."""
    lost = np.flatnonzero(~contents.measured)
    columns = contents.columns
    rows: list[tuple[Cell, ...]] = [
        (str(columns["path"][k]), _utc(columns["jd_utc"][k]), str(columns["reason"][k]))
        for k in lost[:MAX_ROWS]
    ]
    lead = f"the first {MAX_ROWS} of {len(lost)}" if len(lost) > MAX_ROWS else ""
    return Table("Quarantined frames", ("frame", "mid-exposure (UTC)", "reason"), rows, lead)


def comparisons_table(contents: Contents, labels: Mapping[int, str]) -> Table:
    """The comparison stars that weigh most."""
    best, reference = contents.comparisons, contents.reference
    rows: list[tuple[Cell, ...]] = []
    for star, weight, flux, clean in zip(
        best.star, best.weight, best.flux, best.clean, strict=True
    ):
        use = flux[clean]
        steps = _own_scatter(use, contents.columns["night"][clean])
        place = (
            ("", "")
            if reference is None
            else (f"{reference.x[star]:.1f}", f"{reference.y[star]:.1f}")
        )
        rows.append((labels[int(star)], str(star), *place, f"{100 * weight:.2f}", steps))
    columns = ("", "#star", "#x (px)", "#y (px)", "#weight (%)", "#scatter (%)")
    n, shown = int((contents.weight > 0).sum()), float(best.weight.sum())
    lead = (
        f"{len(rows)} of {n}; together {100 * shown:.0f} % of the weight. Scatter is from point to "
        "point, at each star's own aperture."
    )
    return Table("Comparison stars", columns, rows, lead)


def _own_scatter(flux: Any, night: Any) -> str:
    """Point-to-point scatter as text, of a flux about its median."""
    level = np.median(flux) if len(flux) else np.nan
    return number(100 * point_to_point(flux / level, night), ".3f")


def nights_table(rows: Sequence[NightSummary], links: Mapping[str, str]) -> Table:
    """The nights of a light curve, each leading to its page."""
    cells: list[tuple[Cell, ...]] = [
        (Link(row.night, links[row.night]), *night_cells(row)) for row in rows
    ]
    return Table("Nights", ("night", *NIGHT_COLUMNS), cells)


NIGHT_COLUMNS = (
    "#frames", "#quarantined", "#points", "#without flag", "#scatter (%)", "#error (%)",
    "#median flux", "#FWHM (px)", "#airmass",
)  # fmt: skip


def night_cells(row: NightSummary) -> tuple[str, ...]:
    """A night's numbers as text, in the order of NIGHT_COLUMNS."""
    low, high = row.airmass
    return (
        str(row.n_frames), str(row.n_quarantined), str(row.n_points), str(row.n_clean),
        number(100 * row.scatter, ".3f"), number(100 * row.error, ".3f"), number(row.flux, ".4f"),
        number(row.fwhm_px, ".2f"), f"{low:.2f}–{high:.2f}" if np.isfinite(low) else "unknown",
    )  # fmt: skip


def provenance_rows(
    paths: Mapping[str, Path], own: Mapping[str, Any]
) -> tuple[list[tuple[Cell, ...]], list[tuple[str, str]]]:
    """A row for the page and each product it shows, and their settings as JSON."""
    every = [dict(own)] + [read_attributes(path) for path in paths.values()]
    rows: list[tuple[Cell, ...]] = []
    settings: list[tuple[str, str]] = []
    for attributes in every:
        inputs = [name for name, _ in attributes["inputs"]]
        shown = inputs if len(inputs) <= MAX_INPUTS else inputs[:2]
        text = ", ".join(shown)
        if len(inputs) > len(shown):
            text += f" and {len(inputs) - len(shown)} more"
        product = str(attributes["product"])
        version = str(attributes["algorithm_version"])
        rows.append((product, str(attributes["fingerprint"]), version, text))
        if attributes["settings"]:
            settings.append((product, json.dumps(attributes["settings"], indent=1)))
    return rows, settings


def software_text(own: Mapping[str, Any]) -> str:
    """Versions of what made the page."""
    software = dict(own["software"])
    first = str(software.pop("nightloom"))
    return first + "; " + ", ".join(f"{name} {version}" for name, version in software.items())


def _utc(jd_utc: float) -> str:
    if not np.isfinite(jd_utc):
        return "unknown"
    moment = UNIX_EPOCH + timedelta(seconds=round((jd_utc - JD_UNIX) * 86400))
    return moment.strftime("%Y-%m-%d %H:%M:%S")
