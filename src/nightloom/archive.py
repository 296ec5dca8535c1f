"""Archive: the read-only doors to a products folder, for notebooks and pages."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from astropy.wcs import WCS

from nightloom.errors import ArchiveError
from nightloom.gather.budget import clean_points, noise_budget
from nightloom.plan.fields import slug
from nightloom.plan.recipes import filter_slug
from nightloom.schema.flags import BITS
from nightloom.schema.frames import QUARANTINE, SUSPECT_BITS, completed, empty_frames
from nightloom.store.encodings import open_store, read_arrays, read_attributes
from nightloom.store.ledger import ledger, read_expected
from nightloom.store.products import current, kind_of, read_attempt
from nightloom.store.tables import read_table

FRAMES = "frames.parquet"


@dataclass(frozen=True, slots=True)
class Reference:
    """A field's reference: its stack with weights [y, x], its stars, and its WCS if solved."""

    stack: xr.DataArray
    weight: xr.DataArray
    stars: pd.DataFrame
    wcs: WCS | None
    attributes: dict[str, Any]


def open_archive(products: str | Path) -> Archive:
    """The archive in a products folder, read-only. Example: open_archive("products")

    Raises ArchiveError: the folder is not there or holds no products.
    """
    root = Path(products).resolve()
    if not root.is_dir():
        raise ArchiveError(where=str(products), why="no such folder", do="nightloom run makes it")
    if not (root / FRAMES).exists():
        raise ArchiveError(
            where=str(products), why="holds no frame table", do="is it the products folder?"
        )
    return Archive(root)


@dataclass(frozen=True, slots=True)
class Archive:
    """Products of a nightloom run: tables as pandas, cubes and curves as xarray."""

    root: Path

    @property
    def ledger(self) -> pd.DataFrame:
        """Every expected product with its state, caveats and reason."""
        return ledger(self.root, read_expected(self.root))

    @property
    def frames(self) -> pd.DataFrame:
        """The frame table, with each frame's `state` and its reason in words."""
        path = self.root / FRAMES
        frames = completed(read_table(path)) if path.exists() else empty_frames()
        state = pd.Series("pending", index=frames.index, dtype="str")
        calibration = frames["image_type"].isin(["bias", "dark", "flat"])
        state[calibration] = "unused"
        used = self._frames_in_masters()
        state[calibration & frames["path"].isin(used)] = "used"
        measured = self._measured()
        of_empty = self._of_empty_nights()
        nights = (
            "cube/" + frames["field"] + "/" + frames["night"] + "/"
            + frames["filter"].map(filter_slug)
        )  # fmt: skip
        reasons = pd.Series(
            [measured.get(p, of_empty.get(n)) for p, n in zip(frames["path"], nights, strict=True)],
            index=frames.index,
            dtype=object,
        )
        state[reasons == ""] = "measured"
        lost = reasons.notna() & (reasons != "")
        state[lost] = "quarantined"
        bad = frames["suspect"] & QUARANTINE != 0
        state[bad] = "quarantined"
        state[frames["suspect"] & SUSPECT_BITS["unreadable"] != 0] = "unreadable"
        frames["state"] = state
        frames["reason"] = frames["reason"].mask(lost, reasons).astype("str")
        return frames

    @property
    def nights(self) -> pd.DataFrame:
        """One row a field, night and filter that has frames: counts, and the cube's state."""
        frames = self.frames
        science = frames[frames["field"] != ""]
        states = self.ledger.set_index("product")["state"]
        rows = []
        for (field, night, name), group in science.groupby(["field", "night", "filter"]):
            counts = group["state"].value_counts()
            product = f"cube/{field}/{night}/{filter_slug(str(name))}"
            rows.append(
                {
                    "field": field,
                    "night": night,
                    "filter": name,
                    "n_frames": len(group),
                    "n_measured": int(counts.get("measured", 0)),
                    "n_quarantined": int(counts.get("quarantined", 0)),
                    "exposure_s": float(group["exposure_s"].sum()),
                    "state": states.get(product, "waiting"),
                }
            )
        names = ["field", "night", "filter", "n_frames", "n_measured", "n_quarantined",
                 "exposure_s", "state"]  # fmt: skip
        return pd.DataFrame(rows, columns=names)

    @property
    def targets(self) -> pd.DataFrame:
        """One row a light curve: target, field, filter, star, points, scatter, state."""
        rows = []
        for line in self.ledger.itertuples():
            if line.kind != "lightcurve":
                continue
            path = current(self.root, str(line.product))
            facts = {} if path is None else read_attributes(path)
            n_points = 0
            if path is not None:
                n_points = int(np.isfinite(read_arrays(path, ["flux"])["flux"]).sum())
            _, target, filter_name = str(line.product).split("/")
            rows.append(
                {
                    "target": facts.get("target", target),
                    "field": facts.get("field", ""),
                    "filter": facts.get("filter", filter_name),
                    "star": facts.get("star", -1),
                    "n_points": n_points,
                    "scatter_p2p": facts.get("scatter_p2p"),
                    "state": line.state,
                    "reason": line.reason,
                    "product": line.product,
                }
            )
        names = ["target", "field", "filter", "star", "n_points", "scatter_p2p", "state",
                 "reason", "product"]  # fmt: skip
        return pd.DataFrame(rows, columns=names)

    def cube(self, field: str, filter: str | None = None) -> xr.Dataset:
        """All nights of a field and filter [time, star, aperture], read lazily."""
        return self._dataset(self._of_field("field", field, filter))

    def lightcurves(self, field: str, filter: str | None = None) -> xr.Dataset:
        """Every star's differential flux [star, time] at its own best aperture."""
        return self._dataset(self._of_field("ensemble", field, filter))

    def lightcurve(self, target: str, filter: str | None = None) -> xr.Dataset:
        """The light curve of a target over all nights [time], relative flux with median 1.

        The filter may be left out where there is one. Raises ArchiveError: no such target,
        several filters, or the light curve could not be made (with the reason).
        """
        known = {
            str(p): str(s)
            for p, s in zip(self.ledger["product"], self.ledger["state"], strict=True)
            if kind_of(str(p)) == "lightcurve"
        }
        mine = [p for p in known if p.split("/")[1] == slug(target)]
        if not mine:
            names = sorted({p.split("/")[1] for p in known})
            raise ArchiveError(
                where=target, why="is no target", do=f"targets: {', '.join(names) or 'none'}"
            )
        return self._dataset(self._one_filter(mine, target, filter))

    def noise_budget(self, target: str, filter: str | None = None) -> pd.DataFrame:
        """What a point of a target's light curve errs by, by causes, beside its scatter.

        A row a term: `relative` to the flux (of the last row a plain ratio; NaN where unknown),
        `meaning`, and in `note` why one is unknown. Medians over the clean points; `expected` is
        the sum in quadrature. Raises ArchiveError: as lightcurve(), or it is of an older version.
        """
        curve = self.lightcurve(target, filter)
        if "comparison_share" not in curve.attrs:
            raise ArchiveError(
                where=str(curve.attrs["product"]), why="is of a version without a noise budget",
                do="nightloom run makes it again",
            )  # fmt: skip
        columns = {str(name): curve[name].values for name in curve.data_vars}
        terms = noise_budget(columns, clean_points(columns), curve.attrs)
        rows = {t.name: (t.value, t.meaning, t.note) for t in terms}
        return pd.DataFrame.from_dict(
            rows, orient="index", columns=["relative", "meaning", "note"]
        ).rename_axis("term")

    def reference(self, field: str) -> Reference:
        """The reference of a field."""
        product = f"reference/{field}"
        dataset = self._dataset(product)
        names = [n for n in dataset.data_vars if dataset[n].dims == ("star",)]
        plate = current(self.root, f"plate/{field}")
        wcs = None if plate is None else wcs_of(read_attributes(plate)["wcs"])
        return Reference(
            dataset["stack"], dataset["weight"], dataset[names].to_dataframe(), wcs,
            dict(dataset.attrs),
        )  # fmt: skip

    def stack(self, field: str, night: str, filter: str) -> xr.Dataset:
        """The stack of a night on the reference's grid, with its weights [y, x]; to look at.

        Made where nightloom.toml says so: [stack] nights = true.
        """
        return self._dataset(f"stack/{field}/{night}/{filter_slug(filter)}")

    def master(self, product: str) -> xr.Dataset:
        """A master by its id, such as "master/bias/..."; the ids are in `ledger`."""
        name = product if product.startswith("master/") else f"master/{product}"
        return self._dataset(name)

    def _of_field(self, kind: str, field: str, filter_name: str | None) -> str:
        mine = [
            str(p)
            for p in self.ledger["product"]
            if kind_of(str(p)) == kind and str(p).split("/")[1] == field
        ]
        if not mine:
            known = sorted({str(p).split("/")[1] for p in self.ledger["product"]
                            if kind_of(str(p)) == kind})  # fmt: skip
            raise ArchiveError(
                where=field, why="is no field", do=f"fields: {', '.join(known) or 'none'}"
            )
        return self._one_filter(mine, field, filter_name)

    def _one_filter(self, products: list[str], what: str, filter_name: str | None) -> str:
        filters = [p.split("/")[2] for p in products]
        if filter_name is None:
            if len(products) == 1:
                return products[0]
            raise ArchiveError(
                where=what, why="has several filters", do=f"name one: {', '.join(filters)}"
            )
        wanted = filter_slug(filter_name)
        for product, name in zip(products, filters, strict=True):
            if name == wanted:
                return product
        raise ArchiveError(
            where=what, why=f"has no filter {filter_name!r}", do=f"filters: {', '.join(filters)}"
        )

    def _dataset(self, product: str) -> xr.Dataset:
        path = current(self.root, product)
        if path is None:
            attempt = read_attempt(self.root, product)
            why = "is not made" if attempt is None else f"{attempt.outcome}: {attempt.reason}"
            raise ArchiveError(where=product, why=why, do="see: nightloom status")
        return open_dataset(path)

    def _frames_in_masters(self) -> set[str]:
        used: set[str] = set()
        for product in self.ledger["product"]:
            if kind_of(str(product)) == "master":
                path = current(self.root, str(product))
                used |= set() if path is None else set(read_attributes(path)["frames"])
        return used

    def _measured(self) -> dict[str, str]:
        """Path of each frame of a cube -> empty if measured, else why not."""
        out: dict[str, str] = {}
        for product in self.ledger["product"]:
            path = current(self.root, str(product)) if kind_of(str(product)) == "cube" else None
            if path is None:
                continue
            rows = read_arrays(path, ["path", "reason", "frame_flags"])
            lost = rows["frame_flags"] & np.uint32(BITS["not_measured"]) != 0
            for name, reason, is_lost in zip(rows["path"], rows["reason"], lost, strict=True):
                out[str(name)] = (str(reason) or "not measured") if is_lost else ""
        return out

    def _of_empty_nights(self) -> dict[str, str]:
        """Cubes of which no frame could be measured, with the reason."""
        ledger = self.ledger
        empty = ledger[(ledger["kind"] == "cube") & (ledger["state"] == "empty")]
        return {str(p): str(r) for p, r in zip(empty["product"], empty["reason"], strict=True)}


def open_dataset(path: Path) -> xr.Dataset:
    """A store as xarray, lazily, without a Dask graph.

    Raises ArchiveError, here or when values are read: something of it is lost or damaged.
    """
    dataset: xr.Dataset = xr.open_zarr(open_store(path), chunks=None, consolidated=True)
    return dataset


def wcs_of(header: str) -> WCS:
    """A WCS from header text."""
    with warnings.catch_warnings():
        # What astropy mends in old headers it says each time; the plate was checked when made.
        warnings.filterwarnings("ignore", message=".*(RADECSYS|datfix|obsfix|unitfix)")
        return WCS(header)
