"""Arrays -> matplotlib figures: light curves, and what moves them, against time.

Every figure is drawn in the house style, whatever the user's settings are, with matplotlib's
objects and never its global state: in a worker, in a notebook and twice, it is the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nightloom.report.series import (
    MINUTE_D,
    Bools,
    Floats,
    TimeAxis,
    bin_days,
    binned,
    limits,
    time_axis,
)

P = ParamSpec("P")

# Okabe & Ito's colours, told apart by everyone.
BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
INK, GREY, PALE = "#24292f", "#8b929a", "#d5d9de"
DPI = 150
WIDTH_IN = 9.6
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"], "font.size": 9.5,
    "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titlepad": 8.0,
    "axes.edgecolor": GREY, "axes.labelcolor": INK, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.useoffset": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef0", "grid.linewidth": 0.8,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "legend.frameon": False, "legend.borderaxespad": 0.2, "figure.facecolor": "white",
}  # fmt: skip

CROWDED = 400  # points of a panel above which error bars would hide them
MAX_NIGHT_LABELS = 9


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """The same figure, drawn in the house style; the user's own settings stay as they were."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return inside


def png(figure: Figure) -> bytes:
    """A figure as PNG: equal figures give equal bytes, so no date and no software is in it."""
    buffer = io.BytesIO()
    with style.context(["default", STYLE]):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@styled
def light_curve(
    axis: TimeAxis, flux: Floats, flux_err: Floats, clean: Bools, *, title: str
) -> Figure:
    """A target's relative flux: every point, flagged ones hollow, and the means of bins."""
    figure, (panel,) = _panels([4.0], title=title)
    width = bin_days(axis)
    _draw_curve(panel, axis, flux, flux_err, clean, bin_d=width)
    panel.set_ylabel("relative flux")
    _dress(panel, axis)
    _legend(panel)
    return figure


@styled
def night_panels(
    time_d: Floats, night: NDArray[Any], flux: Floats, flux_err: Floats, clean: Bools, *,
    scale: str, title: str,
) -> Figure:  # fmt: skip
    """A small panel a night, all of one scale in time and flux, so that nights compare."""
    axes = {
        name: time_axis(time_d[night == name], night[night == name], scale=scale)
        for name in np.unique(night)
    }
    columns = 3 if len(axes) > 4 else 2
    rows = -(-len(axes) // columns)
    figure = Figure(figsize=(WIDTH_IN, 2.3 * rows + 0.5))
    figure.subplots_adjust(
        left=0.075, right=0.985, wspace=0.08, hspace=0.62,
        top=1 - 0.62 / (2.3 * rows + 0.5), bottom=0.55 / (2.3 * rows + 0.5),
    )  # fmt: skip
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    figure.text(0.012, 1 - 0.2 / (2.3 * rows + 0.5), title, size=10.5, va="center")
    longest = max(float(np.ptp(axis.spans)) for axis in axes.values())
    low, high = _limits_with_errors(flux, flux_err, clean)
    for panel, (name, axis) in zip(grid.flat, axes.items(), strict=False):
        some = night == name
        _draw_curve(
            panel, axis, flux[some], flux_err[some], clean[some], bin_d=bin_days(axis),
            within=(low, high),
        )  # fmt: skip
        middle = float(axis.spans.mean())
        panel.set_xlim(middle - 0.54 * longest, middle + 0.54 * longest)
        panel.set_title(name, size=9, pad=3, color=GREY)
        panel.set_xlabel(axis.label.replace(" (days)", ""), size=8)
    for panel in grid.flat[len(axes) :]:
        panel.set_visible(False)
    for panel in grid[:, 0]:
        panel.set_ylabel("relative flux")
    return figure


@styled
def overview(
    time_d: Floats, night: NDArray[Any], flux: Floats, clean: Bools, *, scale: str, title: str
) -> Figure:
    """All nights along true time: clean points, and each night's median with its quartiles."""
    figure, (panel,) = _panels([3.1], title=title)
    day = int(np.floor(np.nanmin(time_d)))
    use = clean & np.isfinite(flux)
    # Few points must be seen, many must show where they are dense.
    size, alpha = (3.4, 0.5) if use.sum() < 10 * CROWDED else (2.0, 0.2)
    panel.plot(time_d[use] - day, flux[use], "o", ms=size, color=BLUE, alpha=alpha, mew=0)
    nights = [use & (night == name) for name in np.unique(night)]
    nights = [some for some in nights if some.any()]
    middle = np.array([np.median(time_d[some]) for some in nights]) - day
    quartiles = np.array([np.percentile(flux[some], [25, 50, 75]) for some in nights])
    quartiles = quartiles.reshape(-1, 3)
    panel.errorbar(
        middle, quartiles[:, 1], np.abs(quartiles[:, [0, 2]] - quartiles[:, [1]]).T, fmt="o",
        ms=5, color=VERMILION, mec="white", mew=0.6, elinewidth=1.3,
        label="median of a night, with quartiles",
    )  # fmt: skip
    panel.set(ylabel="relative flux", xlabel=f"{scale} − {day} (days)")
    panel.set_ylim(limits(flux, clean))
    panel.margins(x=0.03)
    _legend(panel)
    return figure


@styled
def raw_curves(
    axis: TimeAxis, raw_flux: Floats, comparison: Floats, clean: Bools, *, unit: str, title: str
) -> Figure:
    """The target's flux in its aperture, and what its comparisons say the frame did to it."""
    figure, (panel,) = _panels([2.9], title=title)
    level = _median(raw_flux[clean])
    panel.plot(
        axis.x, raw_flux / level, "o", ms=3, color=BLUE, mew=0, alpha=0.8,
        label=f"target (median {level:,.0f} {unit})",
    )  # fmt: skip
    panel.plot(
        axis.x, comparison / _median(comparison[clean]), "o", ms=3, mfc="none", mec=ORANGE, mew=0.8,
        label="comparison stars",
    )  # fmt: skip
    panel.set_ylabel("flux over median")
    both = np.concatenate([raw_flux / level, comparison / _median(comparison[clean])])
    panel.set_ylim(limits(both, np.tile(clean, 2)))
    _dress(panel, axis)
    _legend(panel)
    return figure


@styled
def comparison_stars(
    axis: TimeAxis, flux: Floats, clean: Bools, weight: Floats, labels: Sequence[str], *, title: str
) -> Figure:
    """Curves of the comparison stars one above the other, each beside the bar of its weight.

    flux, clean [star, time], flux about 1; weight [star], heaviest first.
    """
    n = len(labels)
    height = 0.52 * n + 1.4
    figure = Figure(figsize=(WIDTH_IN, height))
    figure.subplots_adjust(
        left=0.085, right=0.985, top=1 - 0.45 / height, bottom=0.62 / height, wspace=0.06
    )
    curves, bars = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    used = np.where(clean, flux, np.nan)
    spread = [_median(np.abs(row - _median(row))) * 1.4826 for row in used]
    step = max(7 * _median(np.array(spread)), 1e-6)
    for row in range(n):
        place = n - 1 - row
        offset = np.clip((used[row] - _median(used[row])) / step, -0.55, 0.55)
        curves.axhline(place, color=PALE, lw=0.8, zorder=1)
        curves.plot(axis.x, place + offset, "o", ms=2.2, mew=0, color=BLUE, alpha=0.7)
    bars.barh(np.arange(n)[::-1], 100 * weight, height=0.55, color=BLUE, alpha=0.85)
    for row, value in enumerate(100 * weight):
        bars.text(value, n - 1 - row, f" {value:.1f}", va="center", size=8)
    curves.set_yticks(np.arange(n)[::-1], labels)
    curves.set_ylim(-0.75, n - 0.25)
    curves.set_ylabel(f"relative flux, rows {100 * step:.2g} % apart")
    curves.grid(visible=False, axis="y")
    bars.grid(visible=False)
    bars.tick_params(left=False, labelleft=False)
    bars.set_xlim(0, 130 * float(weight.max()))
    bars.set_xlabel("weight (%)")
    curves.set_title(title)
    _dress(curves, axis)
    return figure


@styled
def systematics(
    axis: TimeAxis, rows: Sequence[tuple[str, Sequence[tuple[str, Floats]]]], clean: Bools, *,
    title: str,
) -> Figure:  # fmt: skip
    """What may move a light curve, a panel each: (axis label, curves by name).

    clean [time]: frames without a flag; the others are grey. Panels without a number are left out.
    """
    shown = [row for row in rows if any(np.isfinite(values).any() for _, values in row[1])]
    figure, panels = _panels([1.05] * len(shown), title=title)
    for panel, (label, curves) in zip(panels, shown, strict=True):
        low, high = _systematic_limits(np.array([values for _, values in curves]), clean)
        for (name, values), colour in zip(curves, (BLUE, VERMILION, GREEN), strict=False):
            bad = np.where(clean, np.nan, np.clip(values, low, high))
            panel.plot(axis.x, bad, "o", ms=2.8, mfc="none", mec=GREY, mew=0.7, clip_on=False)
            good = np.where(clean, values, np.nan)
            panel.plot(axis.x, good, "o", ms=2.8, mew=0, color=colour, label=name)
        panel.set_ylabel(label)
        panel.yaxis.set_label_coords(-0.065, 0.5)
        panel.set_ylim(low, high)
        if len(curves) > 1:
            panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.1)
        panel.tick_params(labelbottom=False)
    for panel in panels:
        _dress(panel, axis)
        panel.set_xlabel("")
    panels[-1].tick_params(labelbottom=True)
    panels[-1].set_xlabel(axis.label)
    figure.subplots_adjust(right=0.93)
    return figure


@styled
def aperture_choice(
    radius_px: Floats, scatter: Floats, kind: NDArray[np.str_], *, chosen: int, label: str,
    title: str,
) -> Figure:  # fmt: skip
    """Neighbour-to-neighbour scatter of the target against aperture, the chosen one marked.

    radius_px, scatter, kind [aperture]; kind: fwhm, px or optimal.
    """
    figure, (panel,) = _panels([2.9], title=title)
    percent = 100 * scatter
    for which, marker, colour, name in (
        ("fwhm", "o-", BLUE, "radius follows the FWHM"),
        ("px", "s--", ORANGE, "radius fixed in pixels"),
        ("optimal", "D", GREEN, "weighted by the profile"),
    ):
        some = kind == which
        if np.isfinite(percent[some]).any():
            panel.plot(
                radius_px[some], percent[some], marker, ms=4, lw=1, color=colour, mew=0, label=name
            )
    here = (radius_px[chosen], percent[chosen])
    panel.plot(*here, "o", ms=13, mfc="none", mec=VERMILION, mew=1.8)
    panel.annotate(
        label, here, xytext=(0, 14), textcoords="offset points", color=VERMILION, ha="center",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip
    best = np.nanmin(percent)
    top = min(np.nanmax(percent), 5 * best)
    panel.set_ylim(best - 0.12 * (top - best) - 0.02 * best, top + 0.1 * (top - best) + 0.1 * best)
    panel.set(xlabel="aperture radius (px)", ylabel="point-to-point scatter (%)")
    _legend(panel)
    return figure


@styled
def thumbnail(axis: TimeAxis, flux: Floats, clean: Bools, *, within: tuple[float, float]) -> Figure:
    """A light curve without axes, to recognise it in a table; within: its range of flux."""
    figure = Figure(figsize=(2.4, 0.5))
    panel = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    panel.set_axis_off()
    use = clean & np.isfinite(flux)
    panel.plot(axis.x[use], flux[use], "o", ms=1.7, mew=0, color=BLUE, alpha=0.8)
    panel.set_ylim(within)
    return figure


def _draw_curve(
    panel: Axes, axis: TimeAxis, flux: Floats, flux_err: Floats, clean: Bools, *, bin_d: float,
    within: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    low, high = within or _limits_with_errors(flux, flux_err, clean)
    flagged = ~clean & np.isfinite(flux)
    crowded = len(flux) > CROWDED
    panel.errorbar(
        axis.x[clean], flux[clean], None if crowded else flux_err[clean], fmt="o",
        ms=2.2 if crowded else 3.2, color=BLUE, alpha=0.35 if crowded else 0.45, mew=0,
        elinewidth=0.7, label="points",
    )  # fmt: skip
    if flagged.any():
        panel.plot(
            axis.x[flagged], np.clip(flux[flagged], low, high), "o", ms=3.4, mfc="none", mec=GREY,
            mew=0.8, label="flagged points", clip_on=False,
        )  # fmt: skip
    for beyond, edge, marker in ((flux > high, high, "^"), (flux < low, low, "v")):
        some = beyond & clean
        panel.plot(
            axis.x[some], np.full(some.sum(), edge), marker, ms=5, color=BLUE, mew=0, clip_on=False
        )
    x, mean, error = binned(axis, flux, flux_err, clean, bin_d=bin_d)
    panel.errorbar(
        x, mean, error, fmt="o", ms=4.6, color=VERMILION, mec="white", mew=0.5, elinewidth=1.1,
        label=f"means of {bin_d / MINUTE_D:.0f} minutes", zorder=4,
    )  # fmt: skip
    panel.set_ylim(low, high)


def _systematic_limits(curves: Floats, clean: Bools) -> tuple[float, float]:
    """Range of y of curves [curve, time]: flagged frames may widen it fourfold, not more."""
    flat, which = curves.ravel(), np.tile(clean, len(curves))
    low, high = limits(flat, which)
    good = flat[np.isfinite(flat)]
    room = 1.5 * (high - low)
    margin = 0.1 * (high - low)
    return (
        max(min(low, float(good.min()) - margin), low - room),
        min(max(high, float(good.max()) + margin), high + room),
    )


def _limits_with_errors(flux: Floats, flux_err: Floats, clean: Bools) -> tuple[float, float]:
    """Range of y with room for a usual error bar, which takes no more than a third of it."""
    low, high = limits(flux, clean)
    error = _median(flux_err[clean])
    room = min(0.7 * error, 0.33 * (high - low)) if np.isfinite(error) else 0.0
    return low - room, high + room


def _panels(heights_in: Sequence[float], *, title: str) -> tuple[Figure, list[Axes]]:
    """Panels one above the other that share x; margins are set in inches, once for all."""
    total = sum(heights_in) + 0.14 * (len(heights_in) - 1) + 1.0
    figure = Figure(figsize=(WIDTH_IN, total))
    figure.subplots_adjust(
        left=0.085, right=0.985, top=1 - 0.4 / total, bottom=0.55 / total, hspace=0.14
    )
    grid = figure.subplots(
        len(heights_in), 1, sharex=True, squeeze=False, height_ratios=list(heights_in)
    )
    panels = list(grid[:, 0])
    panels[0].set_title(title)
    return figure, panels


def _dress(panel: Axes, axis: TimeAxis) -> None:
    """Ticks and label of a time axis; nights beside each other are parted and named."""
    first, last = float(axis.spans[0, 0]), float(axis.spans[-1, 1])
    room = 0.015 * (last - first) or 0.01
    panel.set_xlim(first - room, last + room)
    panel.set_xlabel(axis.label)
    if len(axis.names) <= 1:
        return
    for right, left in zip(axis.spans[:-1, 1], axis.spans[1:, 0], strict=True):
        panel.axvline(0.5 * (right + left), color=PALE, lw=0.8, zorder=1)
    every = -(-len(axis.names) // MAX_NIGHT_LABELS)
    panel.set_xticks(axis.spans[::every].mean(axis=1), axis.names[::every])
    panel.grid(visible=False, axis="x")


def _legend(panel: Axes) -> None:
    """A legend above the panel at the right, where no point can lie beneath it."""
    panel.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, handletextpad=0.2, columnspacing=1.2
    )


def _median(values: Floats) -> float:
    good = values[np.isfinite(values)]
    return float(np.median(good)) if good.size else float("nan")
