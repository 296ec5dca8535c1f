"""What publishing needs of the products' file system, tried for real in a folder of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nightloom.errors import RunError
from nightloom.store.work import work_name

NEEDS = {
    "write": "mount it writable, free space, or name another folder in archive.products",
    "rename": "products need a POSIX file system: name another folder in archive.products",
    "symlink": "readers find products by symlinks: name a folder on a file system that has them "
    "(not FAT, exFAT or some network shares) in archive.products",
}


def require_file_system(root: Path) -> None:
    """Make the products' folder, and refuse one that nothing can be published in.

    Raises RunError: says which operation fails, and why.
    """
    for operation, error in try_operations(root).items():
        if error:
            raise RunError(
                where=str(root), why=f"can't {operation} there: {error}", do=NEEDS[operation]
            )


def try_operations(root: Path) -> dict[str, str]:
    """Each operation that publishing needs with the error it gave, "" for none."""
    folder = root / work_name()
    trials: dict[str, Callable[[Path], None]] = {
        "write": _write,
        "rename": _rename,
        "symlink": _symlink,
    }
    errors = dict.fromkeys(trials, "")
    try:
        for operation, trial in trials.items():
            try:
                trial(folder)
            except OSError as error:
                errors[operation] = error.strerror or str(error)
                if operation == "write":
                    break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return errors


def _write(folder: Path) -> None:
    folder.mkdir(parents=True)
    with (folder / "file").open("wb") as file:
        file.write(b"nightloom")
        file.flush()
        os.fsync(file.fileno())


def _rename(folder: Path) -> None:
    made = folder / "made"
    made.mkdir()
    (made / "file").write_bytes(b"nightloom")
    made.rename(folder / "version")


def _symlink(folder: Path) -> None:
    for name in ("one", "other"):
        (folder / name).write_text(name)
        link = folder / f"link-{name}"
        link.symlink_to(name)
        link.replace(folder / "current")
    if (folder / "current").read_text() != "other":
        raise OSError("a symlink that was renamed over another does not lead to the new place")
