"""What is in the making: its names, which say who makes it, and how it is taken away.

A folder or file of this name is looked at by nobody else; where its process is gone it is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORK_PREFIX = ".work-"
BEGUN = "begun"  # a file in each work folder, which one that came back does not have


def work_name() -> str:
    """A name that no other has: of this host and process."""
    return f"{WORK_PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def begin_folder(place: Path) -> Path:
    """A fresh folder at a place."""
    folder = place / work_name()
    folder.mkdir(parents=True)
    (folder / BEGUN).touch()
    return folder


def is_as_begun(folder: Path) -> bool:
    """Whether a folder in the making, or one within it, was not taken away meanwhile.

    Who still writes to one that was makes it anew, without what was written before.
    """
    outer = next((p for p in (folder, *folder.parents) if p.name.startswith(WORK_PREFIX)), None)
    return outer is None or (outer / BEGUN).exists()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside a file to write it to, whose content a reader sees whole or not at all."""
    temporary = path.with_name(work_name())
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def discard(path: Path) -> None:
    """Remove a folder or file in the making, in one instant for whoever still writes to it."""
    aside = path.with_name(work_name())
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    except OSError:
        aside = path  # where nothing can be renamed it may still be possible to remove it
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            aside.unlink()


def sweep(root: Path) -> int:
    """Remove what is in the making and whose process is gone; returns how many."""
    found = leftovers(root)
    for path in found:
        discard(path)
    return len(found)


def leftovers(root: Path) -> list[Path]:
    """Folders and files in the making whose process is gone."""
    found: list[Path] = []
    for folder, inside, files in os.walk(root):
        names = (name for name in (*inside, *files) if name.startswith(WORK_PREFIX))
        found += [Path(folder, name) for name in names]
        # Versions hold thousands of folders, and never one in the making.
        inside[:] = [name for name in inside if not name.startswith(".")]
    return sorted(path for path in found if _owner_is_gone(path.name))


def _owner_is_gone(name: str) -> bool:
    host, pid, _ = name.removeprefix(WORK_PREFIX).rsplit("-", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()
