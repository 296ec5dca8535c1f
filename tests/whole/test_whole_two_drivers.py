"""Two drivers on the same products at once do no harm."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from archives import MAIN, archive_of, run, star_field, write_config, write_frame
from nightloom.store.products import current, products_on_disk
from nightloom.store.verify import verify_product

NY, NX = 140, 160


def digests(config: Path) -> dict[str, str]:
    """Digest of every byte of each product's current version."""
    root = archive_of(config).root
    out: dict[str, str] = {}
    for product in products_on_disk(root):
        path = current(root, product)
        if path is not None:
            hasher = hashlib.blake2b()
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            for file in files:
                hasher.update(file.name.encode() + file.read_bytes())
            out[product] = path.name + hasher.hexdigest()
    return out


def test_two_runs_started_together_make_what_one_makes(tmp_path: Path) -> None:
    x, y, flux = star_field(16, ny=NY, nx=NX, seed=6)
    configs = []
    for name in ("two", "one"):
        folder = tmp_path / name
        for k in range(8):
            write_frame(
                folder / "frames" / f"night{k // 4}" / f"f{k}.fits", x + 0.4 * k, y, flux, ny=NY,
                nx=NX, minute=k, seed=k,
            )  # fmt: skip
        configs.append(write_config(folder, more=f'[[target]]\nname="T1"\nx={x[2]}\ny={y[2]}\n'))
    command = [sys.executable, "-c", MAIN, "run", str(configs[0]), "--cluster", "serial"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    for process in both:
        told, _ = process.communicate(timeout=240)
        assert process.returncode == 0, told
    assert run(configs[1], report=True).exit_code == 0
    assert digests(configs[0]) == digests(configs[1])
    root = archive_of(configs[0]).root
    assert not [p for p in root.rglob(".*") if p.name != ".versions"]  # no folder, no temporary
    assert [f for p in products_on_disk(root) for f in verify_product(root, p).flaws] == []
