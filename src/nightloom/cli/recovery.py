"""What the demo found beside what was put in: transits fitted with their known times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from astropy.table import Table
from numpy.typing import NDArray

from nightloom.archive import Archive
from nightloom.synth.truth import transit_flux


@dataclass(frozen=True, slots=True)
class Recovery:
    """Depth of a transit as found and as injected; errors are of one sigma."""

    target: str
    depth: float
    depth_err: float
    injected: float
    n_points: int
    p2p: float

    @property
    def sigmas(self) -> float:
        return abs(self.depth - self.injected) / self.depth_err


def recoveries(archive: Archive, folder: Path) -> list[Recovery]:
    """Every injected transit whose target has a light curve.

    folder: of the synthetic archive, with truth/stars.ecsv.
    """
    stars = Table.read(folder / "truth" / "stars.ecsv", format="ascii.ecsv")
    found: list[Recovery] = []
    for star in stars[stars["kind"] == "transit"]:
        name = f"{star['field']} transit"
        for row in archive.targets[archive.targets["target"] == name].itertuples():
            if row.n_points:
                curve = archive.lightcurve(name, str(row.filter))
                found.append(fit_depth(name, curve, star))
    return found


def fit_depth(name: str, curve: xr.Dataset, star: Table.Row) -> Recovery:
    """Weighted least squares for the depth, with a level and an airmass slope for each night."""
    good = (curve["flags"].values == 0) & np.isfinite(curve["flux"].values)
    flux, error = curve["flux"].values[good], curve["flux_err"].values[good]
    night, airmass = curve["night"].values[good], curve["airmass"].values[good]
    shape = 1 - transit_flux(
        curve["bjd_tdb"].values[good],
        depth=1.0,
        epoch_bjd=float(star["epoch_bjd"]),
        period_d=float(star["period_d"]),
        duration_d=float(star["duration_d"]),
        ingress_d=float(star["ingress_d"]),
    )
    columns: list[NDArray[np.float64]] = [-shape]
    for one in np.unique(night):
        mine = (night == one).astype(float)
        columns += [mine, mine * (airmass - airmass[night == one].mean())]
    design = np.column_stack(columns) / error[:, None]
    solution, *_ = np.linalg.lstsq(design, flux / error, rcond=None)
    covariance = np.linalg.inv(design.T @ design)
    level = float(np.mean(solution[1::2]))
    steps = np.diff(flux)[night[1:] == night[:-1]]
    return Recovery(
        target=name,
        depth=float(solution[0]) / level,
        depth_err=float(np.sqrt(covariance[0, 0])) / level,
        injected=float(star["depth"]),
        n_points=int(good.sum()),
        p2p=float(np.std(steps) / np.sqrt(2)),
    )
