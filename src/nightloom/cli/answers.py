"""What each verb answers: facts from the products, put into words or JSON."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nightloom import __version__, pipeline
from nightloom.archive import Archive
from nightloom.cli import show
from nightloom.cli.recovery import recoveries
from nightloom.config import Config
from nightloom.doctor import Check, examine
from nightloom.engine.cluster import Engine
from nightloom.errors import ConfigError
from nightloom.explain import explain as explain_recipe
from nightloom.frames.scan import ScanResult
from nightloom.monitor import read_run, state_on_disk
from nightloom.plan.recipes import Plan, make_plan, quarantined
from nightloom.report.nights import nights_page
from nightloom.report.trace import summed_up
from nightloom.store.ledger import STATES
from nightloom.store.ledger import ledger as ledger_of
from nightloom.store.trace import read_trace

FRAME_STATES = ("measured", "used", "unused", "pending", "quarantined", "unreadable")
LOST = ("failed", "retried", "killed")  # what a task came to, other than done
MOST_LISTED = 20

TEMPLATE = """\
[archive]
frames = [{frames}]       # folders or globs with FITS files
products = "products"     # where cubes and light curves go

# [catalog]               # ECSV with ra, dec (deg, ICRS), mag; for targets by coordinates
# files = ["catalogue.ecsv"]

# [[target]]
# name = "HAT-P-32"
# ra = 31.04283           # deg, ICRS; or x and y in the reference, where there is no catalogue
# dec = 46.68784

# [instrument.mycamera]   # only where headers do not suffice
# match = {{TELESCOP = "..."}}
# gain_e_per_adu = 1.5
# read_noise_e = 8.0
"""


def write_config(path: Path, frames: list[str]) -> None:
    """Write a configuration to start from.

    Raises ConfigError: there is one already.
    """
    if path.exists():
        raise ConfigError(where=str(path), why="is there already", do="edit it or name another")
    names = ", ".join('"' + name.replace("\\", "/") + '"' for name in frames)
    path.write_text(TEMPLATE.format(frames=names), encoding="utf-8")


def size(text: str) -> tuple[int, int]:
    """Width and height of "500x400".

    Raises ConfigError: it is no such text.
    """
    try:
        nx, ny = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ConfigError(where="--size", why=f"{text!r} is not width x height") from None
    return nx, ny


def slim(result: ScanResult) -> ScanResult:
    """A scan's result with no more of its table than `scanned` tells: it is held all the run."""
    return replace(result, frames=result.frames[["path", "image_type", "suspect", "reason"]])


def scanned(result: ScanResult, *, as_json: bool) -> None:
    """What a scan found."""
    lost = quarantined(result.frames)
    types = result.frames["image_type"].replace("", "unknown").value_counts()
    if as_json:
        show.as_json(
            {
                "files": result.n_files,
                "read": result.n_read,
                "unchanged": result.n_unchanged,
                "gone": result.n_gone,
                "quarantined": len(lost),
                "types": {str(k): int(v) for k, v in types.items()},
            }
        )
        return
    kinds = ", ".join(f"{count} {name}" for name, count in types.items())
    show.line(
        f"{result.n_files} files ({result.n_read} read, {result.n_gone} gone): {kinds or 'none'}"
    )
    _list_lost(lost)


def _list_lost(lost: pd.DataFrame) -> None:
    for row in lost.head(MOST_LISTED).itertuples():
        show.line(f"  quarantined {row.path}: {row.reason}")
    if len(lost) > MOST_LISTED:
        show.line(f"  and {len(lost) - MOST_LISTED} more: nightloom frames --state quarantined")


def planned(config: Config, *, as_json: bool) -> None:
    """The plan of what lies there now, whatever was scanned before."""
    plan = make_plan(pipeline.look(config).frames, config)
    nights = _nights(plan)
    if as_json:
        show.as_json(
            {
                "nights": nights.to_dict(orient="records"),
                "masters": _masters(plan).to_dict(orient="records"),
                "quarantined": quarantined(plan.frames)[["path", "reason"]].to_dict("records"),
                "missing": _lacks(plan, config),
            }
        )
        return
    if nights.empty:
        show.line("no science frames")
    else:
        show.table(nights, title="Nights")
    masters = _masters(plan)
    if not masters.empty:
        show.table(masters, title="Masters")
    for text in _lacks(plan, config):
        show.line(f"missing: {text}")
    _list_lost(quarantined(plan.frames))


def _nights(plan: Plan) -> pd.DataFrame:
    rows = [
        {
            "field": cube.field,
            "night": cube.night,
            "filter": cube.filter,
            "frames": len(cube.frames),
            "exposure_s": float(np.median(cube.frames.column("exposure_s"))),
            "masters": "; ".join(dict.fromkeys(r for c in cube.choices for r in c.reasons)),
        }
        for cube in plan.cubes
    ]
    return pd.DataFrame(rows)


def _masters(plan: Plan) -> pd.DataFrame:
    rows = [
        {
            "master": master.product.removeprefix("master/"),
            "frames": len(master.frames),
            "used": "yes" if master.product in plan.masters_used else "no",
        }
        for master in plan.masters
    ]
    return pd.DataFrame(rows, columns=["master", "frames", "used"])


def _lacks(plan: Plan, config: Config) -> list[str]:
    """What the archive lacks, in words."""
    n_frames = sum(len(cube.frames) for cube in plan.cubes)
    lacks: list[str] = []
    bare = [cube for cube in plan.cubes if cube.missing]
    for name in ("bias, dark", "dark", "flat"):
        n = sum(name in cube.missing for cube in bare)
        if n:
            lacks.append(f"{name} for {n} of {len(plan.cubes)} nights: left uncalibrated, flagged")
    for attribute, what, then in (
        ("gain_e_per_adu", "gain", "taken as 1 e-/ADU, flagged; set gain_e_per_adu"),
        ("read_noise_e", "read noise", "errors come from the sky's scatter; set read_noise_e"),
        ("site_lat_deg", "site", "no airmass, BJD for the geocentre; set site_lat_deg ..."),
    ):
        n = sum(int((~np.isfinite(c.frames.column(attribute))).sum()) for c in plan.cubes)
        if n:
            lacks.append(f"{what} for {n} of {n_frames} frames: {then}")
    if not config.catalog.files:
        lacks.append("catalogue: targets by coordinates need a WCS in the headers")
    if not config.target:
        lacks.append("targets: add [[target]] to get light curves")
    return lacks


def status(config: Config, *, as_json: bool) -> None:
    """Products by state and frames by theirs."""
    root = config.products_path
    # As things stand now: a setting changed since the last run shows as stale.
    ledger = ledger_of(root, pipeline.expected_now(config))
    frames = Archive(root).frames
    products = ledger.groupby(["kind", "state"]).size().unstack(fill_value=0)
    states = [state for state in STATES if state in products.columns]
    counts = {s: int((frames["state"] == s).sum()) for s in FRAME_STATES}
    if as_json:
        show.as_json(
            {
                "products": {
                    str(kind): {s: int(products.loc[kind, s]) for s in states}
                    for kind in products.index
                },
                "frames": counts,
                "troubled": ledger[ledger["state"].isin(["failed", "blocked", "empty"])][
                    ["product", "state", "reason"]
                ].to_dict("records"),
            }
        )
        return
    if ledger.empty:
        show.line("no products yet: nightloom run")
    else:
        order = list(dict.fromkeys(ledger["kind"]))
        show.table(products.loc[order, states].reset_index(), title="Products")
    show.line("frames: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n))
    for row in ledger[ledger["state"].isin(["failed", "blocked", "empty"])].itertuples():
        show.line(f"  {row.state} {row.product}: {row.reason}")


def write_page(config: Config, file: Path) -> None:
    """The page of all nights, as the products are; with what a run says of itself that goes on."""
    root = config.products_path
    state = state_on_disk(root, pipeline.expected_now(config)) | (read_run(root) or {})
    try:
        file.write_text(nights_page(state, version=__version__), encoding="utf-8")
    except OSError as error:
        raise ConfigError(where=str(file), why=f"can't be written: {error.strerror}") from None
    show.line(f"wrote {file}")


def trace(config: Config, run: str | None, *, as_json: bool) -> None:
    """Where the time of a run went; run: its id, the last one if None."""
    summary = summed_up(read_trace(config.products_path, run))
    if as_json:
        show.as_json(summary.as_dict())
        return
    show.line(
        f"{summary.n_frames} frames in {summary.seconds:.1f} s on {summary.n_workers} workers, "
        f"{summary.n_tasks} tasks, workers idle {summary.idle:.0%} of the time"
    )
    show.line("tasks: " + ", ".join(f"{n} {name}" for name, n in summary.outcomes.items()))
    lost = [name for name in LOST if summary.kinds[name].any()]
    kinds = ["product", "task", "tasks", "wall_s", "share", "cpu_s", "read_mb_s", "queue_s"]
    show.table(_rounded(summary.kinds), columns=kinds + lost, title="Where the time went")
    if not summary.slowest.empty:
        slowest = ["product", "first_frame", "frame_s"]
        show.table(_rounded(summary.slowest), columns=slowest, title="Slowest frames")
    nodes = ["host", "workers", "slowness", "tasks", "wall_s", "read_mb_s"]
    show.table(_rounded(summary.nodes), columns=nodes + lost, title="Nodes (1: as slow as usual)")
    idle = _rounded(summary.workers.head(MOST_LISTED))
    show.table(idle, title="Workers, by the share of the run in which they were idle")


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as people read them: three digits."""
    shown = table.copy()
    for name in table.columns:
        if pd.api.types.is_float_dtype(table[name]):
            shown[name] = [float(f"{value:.3g}") for value in table[name]]
    return shown


def frames(config: Config, *, state: str, as_json: bool) -> None:
    """Frames with state and reason."""
    table = Archive(config.products_path).frames
    if state and state not in FRAME_STATES:
        raise ConfigError(
            where="--state", why=f"{state!r} is no state", do=f"one of {', '.join(FRAME_STATES)}"
        )
    if state:
        table = table[table["state"] == state]
    if as_json:
        show.frame_as_json(table)
        return
    if table.empty:
        show.line(f"no frames{f' that are {state}' if state else ''}")
        return
    columns = ["path", "night", "image_type", "object", "filter", "exposure_s", "state", "reason"]
    show.table(table, columns=columns)


def explain(config: Config, product: str, *, as_json: bool) -> None:
    """Why a product would be made again."""
    root = config.products_path
    plan = make_plan(pipeline.look(config).frames, config)
    recipes = {r.product: r for r in pipeline.all_recipes(root, plan, config)}
    if product not in recipes:
        near = [name for name in recipes if product in name][:5]
        do = f"perhaps {', '.join(near)}" if near else "see: nightloom status"
        raise ConfigError(where=product, why="is no product of this archive", do=do)
    reasons = explain_recipe(root, recipes[product])
    if as_json:
        show.as_json({"product": product, "reasons": reasons})
        return
    for reason in reasons:
        show.line(f"{product}: {reason}")


def doctor(config: Config, engine: Engine, *, as_json: bool) -> bool:
    """Each check as it is done; whether none failed."""
    plan = make_plan(pipeline.read_frames(config.products_path), config)
    done: list[Check] = []
    for check in examine(config, plan, engine):
        done.append(check)
        if not as_json:
            hint = f" ({check.do})" if check.do else ""
            show.line(f"{check.state:>4}  {check.name}: {check.what}{hint}")
    if as_json:
        show.as_json([asdict(check) for check in done])
    return all(check.state != "fail" for check in done)


def demo(config: Config) -> None:
    """What the demo found beside what was put in, and the page to open."""
    archive = Archive(config.products_path)
    for one in recoveries(archive, config.folder):
        show.line(
            f"{one.target}: depth found {100 * one.depth:.3f} +- {100 * one.depth_err:.3f} %, "
            f"injected {100 * one.injected:.3f} % ({one.sigmas:.1f} sigma), "
            f"{one.n_points} points, scatter {100 * one.p2p:.2f} %"
        )
    page = config.products_path / "report" / "index" / "report.html"
    show.line(f"open {page}")
