"""Steps that a frame kills: in a module that workers can import."""

from __future__ import annotations

import os
import signal

from nightloom.reduce.candidates import Candidate
from nightloom.reduce.detection import CalibratedFrame
from nightloom.reduce.reference import ReferenceJob, measure_candidates


def measure_or_die(job: ReferenceJob, items: tuple[CalibratedFrame, ...]) -> list[Candidate]:
    """The step of a reference, in a worker that the second frame kills."""
    if any(item.frame.path == "1.fits" for item in items):
        os.kill(os.getpid(), signal.SIGKILL)
    return measure_candidates(job, items)
