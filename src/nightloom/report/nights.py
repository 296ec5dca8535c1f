"""The page of all nights: its state read off the products, and its HTML.

The same page is served while a run goes on (it asks for its state again and again) and written
to a file when it is over (the state is in it).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nightloom.engine.progress import Board, Detail, FrameTable, MasterNumbers, night_of_master
from nightloom.plan.recipes import filter_slug
from nightloom.report.html import render
from nightloom.schema.flags import BITS
from nightloom.schema.frames import QUARANTINE, SUSPECT_BITS
from nightloom.store.encodings import read_arrays, read_attributes
from nightloom.store.ledger import Expected, Line, read_line
from nightloom.store.products import current, kind_of

MOST_LOST = 1000  # quarantined frames that are named; all are counted


def read_board(root: Path, expected: Iterable[Expected], frames: pd.DataFrame) -> Board:
    """The state of an archive as its products are; frames: the frame table with fields."""
    board = Board(frames=_counts(frames), planned=_planned(frames))
    n_named = 0
    for item in expected:
        line = read_line(root, item)
        board.lines[item.product] = line
        detail = read_detail(root, line, with_reasons=n_named < MOST_LOST)
        n_named += len(detail.lost)
        if detail != Detail():
            board.details[item.product] = detail
    return board


def read_detail(root: Path, line: Line, *, with_reasons: bool = True) -> Detail:
    """What lies in a product: a cube's frames, a master's numbers; nothing of the others."""
    product = line.item.product
    path = current(root, product)
    match kind_of(product):
        case "cube":
            return _detail_of_cube(path, line, with_reasons)
        case "master" if path is not None:
            return _detail_of_master(path, product)
    return Detail()


def nights_page(state: dict[str, Any] | None, *, version: str) -> str:
    """The page; with a state it shows this one, without it asks where it came from for one."""
    # "<" as an escape: text of headers must not end the script that it stands in.
    embedded = "null" if state is None else json.dumps(state).replace("<", "\\u003c")
    return render("nights.html.j2", {"state": embedded, "software": version})


def _detail_of_cube(path: Path | None, line: Line, with_reasons: bool) -> Detail:
    attempt = line.attempt
    if path is None:
        is_empty = attempt is not None and attempt.outcome == "empty"
        if attempt is None or not is_empty or attempt.fingerprint != line.item.fingerprint:
            return Detail()
        lost = ((line.item.product, attempt.reason),) * attempt.n_items if with_reasons else ()
        return Detail(n_lost=attempt.n_items, lost=lost)
    told = attempt is not None and attempt.outcome == "done"
    if attempt is not None and told and attempt.fingerprint == line.published:
        n_lost, n_measured = attempt.n_quarantined, attempt.n_items - attempt.n_quarantined
        if not n_lost or not with_reasons:
            return Detail(n_measured, n_lost)
    rows = read_arrays(path, ["path", "reason", "frame_flags"])
    is_lost = rows["frame_flags"] & np.uint32(BITS["not_measured"]) != 0
    n_lost = int(np.count_nonzero(is_lost))
    lost = tuple(
        (str(name), str(reason) or "not measured")
        for name, reason in zip(rows["path"][is_lost], rows["reason"][is_lost], strict=True)
    )
    return Detail(len(is_lost) - n_lost, n_lost, lost=lost if with_reasons else ())


def _detail_of_master(path: Path, product: str) -> Detail:
    facts = read_attributes(path)
    n_frames = len(facts["frames"])
    if "n_bad" not in facts:  # made before masters said their numbers
        return Detail(n_used=n_frames)
    night = night_of_master(product)
    night_free = [part for part in product.split("/")[-1].split("_") if part != night]
    numbers = MasterNumbers(
        image_type=str(facts["image_type"]),
        series=" ".join(night_free),
        level_adu=float(facts["level_adu"]),
        noise=float(facts["median_noise"]),
        n_bad=int(facts["n_bad"]),
        n_frames=n_frames,
    )
    return Detail(n_used=n_frames, master=numbers)


def _counts(frames: pd.DataFrame) -> FrameTable:
    """The frame table in counts, as `Archive.frames` tells states."""
    unreadable = frames["suspect"] & SUSPECT_BITS["unreadable"] != 0
    lost = (frames["suspect"] & QUARANTINE != 0) & ~unreadable
    good = ~(unreadable | lost)
    calibration = frames["image_type"].isin(["bias", "dark", "flat"])
    named = frames[unreadable | lost].tail(MOST_LOST)
    return FrameTable(
        n_science=int((good & ~calibration).sum()),
        n_calibration=int((good & calibration).sum()),
        n_quarantined=int(lost.sum()),
        n_unreadable=int(unreadable.sum()),
        lost=tuple(zip(named["path"].astype(str), named["reason"].astype(str), strict=True)),
    )


def _planned(frames: pd.DataFrame) -> dict[str, int]:
    """Science frames of each cube."""
    science = frames[frames["field"] != ""]
    sizes = science.groupby(["field", "night", "filter"], sort=False).size()
    keys = sizes.index.to_frame()
    columns = (keys[name].astype(str) for name in ("field", "night", "filter"))
    return {
        f"cube/{field}/{night}/{filter_slug(name)}": int(n)
        for field, night, name, n in zip(*columns, sizes, strict=True)
    }
