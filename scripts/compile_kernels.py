"""Compile every kernel once, into the cache that all later runs read: part of the set-up.

A tiny synthetic night is reduced in a folder that is thrown away.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from nightloom import pipeline
from nightloom.config import load_config
from nightloom.engine.cluster import SERIAL, Engine
from nightloom.synth.archive import write_archive
from nightloom.synth.truth import SynthSpec

SPEC = SynthSpec(n_nights=1, frames_per_night=12, n_bias=3, n_dark=3, n_flat=3)


def main() -> None:
    """Reduce the night in this process."""
    with tempfile.TemporaryDirectory() as folder, Engine(SERIAL) as engine:
        config = load_config(write_archive(Path(folder) / "night", SPEC))
        run = pipeline.Run(config, engine, lambda event: None)
        pipeline.scan(run)
        plan = pipeline.plan(run)
        pipeline.reduce(run, plan)
        pipeline.gather(run, plan)
        if run.outcome.failed:
            raise SystemExit(f"the test night failed: {run.outcome.failed}")


if __name__ == "__main__":
    main()
