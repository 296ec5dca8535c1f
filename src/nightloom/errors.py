"""The tree of errors, grouped by what the one who catches them would do.

Every error says where (file, key or product), why, and what to do. They cross processes, so
each can be pickled whatever its subclass adds.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """How a command ended, for the shell."""

    DONE = 0
    SOME_FAILED = 1
    USAGE = 2
    RUN_FAILED = 3
    INTERRUPTED = 130


class NightloomError(Exception):
    """Anything nightloom says went wrong: `where`, `why` and what to `do`."""

    exit_code = ExitCode.RUN_FAILED

    def __init__(self, *, where: str, why: str, do: str = "") -> None:
        super().__init__(where, why, do)
        self.where = where
        self.why = why
        self.do = do

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" + (f" ({self.do})" if self.do else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.where, self.why, self.do)


def _rebuild(kind: type[NightloomError], where: str, why: str, do: str) -> NightloomError:
    return kind(where=where, why=why, do=do)


class ConfigError(NightloomError):
    """The configuration or the command is wrong: the user mends it, nothing was started."""

    exit_code = ExitCode.USAGE


class FrameError(NightloomError):
    """One frame can't be used: it is quarantined with the reason, the rest goes on."""


class ProductError(NightloomError):
    """One product can't be made: it is recorded as failed, the rest goes on."""


class TransientError(NightloomError):
    """The storage or a worker failed: the same thing may succeed next time, so it is retried."""


class ArchiveError(NightloomError):
    """Something asked of a products folder is not there or is damaged."""


class RunError(NightloomError):
    """The run as a whole can't go on."""
