"""Signals from the first instant of a command to its last."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from archives import MAIN
from nightloom.errors import ExitCode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_command_is_imported(number: signal.Signals, tmp_path: Path) -> None:
    """Without a traceback: nothing had begun."""
    slow = f"import os, signal\nos.kill(os.getpid(), signal.{number.name})\n"
    # What the command imports first of all that is not ours, in its place.
    (tmp_path / "typer.py").write_text(slow)
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); {MAIN}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_when_the_command_is_over(number: signal.Signals) -> None:
    """What was done stays done: no other exit code, nothing said."""
    late = f"import atexit, os, signal; atexit.register(os.kill, os.getpid(), {int(number)}); "
    done = subprocess.run(
        [sys.executable, "-c", late + MAIN, "--version"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")
    assert done.stdout.startswith("nightloom ")
