"""Where the command starts and ends: signals are answered from its first instant to its last."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

from nightloom.errors import ExitCode


def main() -> None:
    """Entry of the command `nightloom`."""
    # A batch system's SIGTERM ends a run as Ctrl-C does: workers closed, folders removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import_module("nightloom.cli.app").main()  # not before: its imports take seconds
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    finally:
        # Python takes its handlers away while it ends: a signal would then change the exit code
        # of a command that is over.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
