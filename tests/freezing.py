"""What each product came to on a fixed small archive: its version, its digest, a few numbers.

`python tests/freezing.py` writes tests/frozen/products.json anew. It refuses where a product
came out otherwise and its version is the old one.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import numpy as np
import xarray as xr
from llvmlite.binding import get_host_cpu_name

from archives import run
from nightloom import pipeline
from nightloom.config import load_config
from nightloom.store.products import current
from nightloom.store.provenance import PACKAGES
from nightloom.synth.archive import write_archive
from nightloom.synth.truth import SynthSpec

FROZEN = Path(__file__).parent / "frozen" / "products.json"
SPEC = SynthSpec(
    n_nights=2, frames_per_night=14, ny=224, nx=256, n_stars=45, n_bias=5, n_dark=4, n_flat=5,
    drift_px=12.0, trailed=False, cloud=False,
)  # fmt: skip
N_SAMPLES = 12
RTOL = 1e-6  # between machines and library versions


def summaries(folder: Path) -> dict[str, Any]:
    """Make the fixed archive in a folder and say what came of it."""
    path = write_archive(folder / "frozen", SPEC)
    assert run(path).exit_code == 0
    config = load_config(path)
    root = config.products_path
    plan = pipeline.make_plan(pipeline.read_frames(root), config)
    products = {}
    for recipe in pipeline.all_recipes(root, plan, config):
        place = current(root, recipe.product)
        if place is not None and not recipe.product.startswith("report/"):
            products[recipe.product] = {"version": recipe.version} | _summary(place)
    frames = hashlib.blake2b(digest_size=10)
    for file in sorted((folder / "frozen" / "frames").rglob("*.fits")):
        frames.update(file.read_bytes())
    return {"environment": environment(), "frames": frames.hexdigest(), "products": products}


def environment() -> dict[str, str]:
    """What the last bits of a float may depend on."""
    return {
        "machine": platform.machine(),
        "cpu": str(numba.core.config.CPU_NAME or get_host_cpu_name()),
        "python": platform.python_version(),
    } | {name: version(name) for name in (*PACKAGES, "pandas", "pyerfa")}


def _summary(place: Path) -> dict[str, Any]:
    """Digest over every value of a store, and evenly spread samples of each variable."""
    hasher = hashlib.blake2b(digest_size=10)
    samples: dict[str, list[float | str]] = {}
    with xr.open_zarr(place, chunks=None) as store:
        for name in sorted(map(str, store.variables)):
            values = store[name].values
            text = values.dtype.kind in "OUT"
            flat = np.ravel(values)
            hasher.update(name.encode() + str(values.shape).encode())
            hasher.update("\0".join(map(str, flat)).encode() if text else flat.tobytes())
            at = np.unique(np.linspace(0, max(flat.size - 1, 0), N_SAMPLES).astype(int))
            samples[name] = [str(v) if text else float(v) for v in flat[at]] if flat.size else []
    return {"digest": hasher.hexdigest(), "samples": samples}


def differing(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Products that are not what they were: to the bit here, else within a tolerance."""
    same_place = now["environment"] == then["environment"]
    return [
        product
        for product in sorted(set(now["products"]) | set(then["products"]))
        if not _same(now["products"].get(product), then["products"].get(product), same_place)
    ]


def _same(now: Any, then: Any, to_the_bit: bool) -> bool:
    if now is None or then is None:
        return False
    if to_the_bit or now["digest"] == then["digest"]:
        return bool(now["digest"] == then["digest"])
    if now["samples"].keys() != then["samples"].keys():
        return False
    return all(_close(now["samples"][name], then["samples"][name]) for name in now["samples"])


def _close(now: list[Any], then: list[Any]) -> bool:
    if len(now) != len(then):
        return False
    if any(isinstance(value, str) for value in now + then):
        return now == then
    scale = np.nanmax(np.abs(then)) if np.isfinite(then).any() else 1.0
    return bool(np.allclose(now, then, rtol=RTOL, atol=RTOL * scale, equal_nan=True))


def main() -> int:
    """Write the file anew, unless a product changed under an old version."""
    with tempfile.TemporaryDirectory() as folder:
        now = summaries(Path(folder))
    if FROZEN.exists():
        then = json.loads(FROZEN.read_text(encoding="utf-8"))
        stale = unversioned(now, then)
        if stale and then["frames"] == now["frames"]:
            print(f"changed, but the version is the old one: {', '.join(stale)}", file=sys.stderr)
            return 1
    FROZEN.parent.mkdir(exist_ok=True)
    FROZEN.write_text(_as_text(now), encoding="utf-8")
    return 0


def _as_text(now: dict[str, Any]) -> str:
    """JSON with a line a product, so that a change shows which."""
    lines = ",\n".join(
        f"  {json.dumps(product)}: {json.dumps(entry, sort_keys=True)}"
        for product, entry in now["products"].items()
    )
    head = json.dumps({"environment": now["environment"], "frames": now["frames"]}, indent=1)
    return f'{head[:-2]},\n "products": {{\n{lines}\n }}\n}}\n'


def unversioned(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Kinds of product that came out otherwise although nothing they depend on says so.

    A cube changes with its master's version; so a kind is named only where no kind before it in
    the order of making changed its version.
    """
    changed = differing(now, then)
    old = {product: entry["version"] for product, entry in then["products"].items()}
    risen = [p for p, entry in now["products"].items() if entry["version"] != old.get(p)]
    order = list(dict.fromkeys(product.split("/")[0] for product in now["products"]))
    first = min((order.index(product.split("/")[0]) for product in risen), default=len(order))
    kinds = {product.split("/")[0] for product in changed if product in now["products"]}
    return sorted(kind for kind in kinds if order.index(kind) < first)


if __name__ == "__main__":
    raise SystemExit(main())
