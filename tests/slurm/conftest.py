"""A real Slurm for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import slurm_nodes


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a running Slurm; skips where none can be started, unless it is required."""
    why = slurm_nodes.lacks()
    if why and os.environ.get("NIGHTLOOM_REQUIRE_SLURM") == "1":
        pytest.fail(f"Slurm is required: {why}")
    if why:
        pytest.skip(f"no real Slurm: {why}")
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_nodes.running(folder):
        yield folder
