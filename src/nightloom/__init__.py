"""nightloom: archives of raw CCD frames into light curves."""

import hashlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightloom.archive import Archive, open_archive

__all__ = ["Archive", "__version__", "open_archive"]
__version__ = "0.1.0"


def _numba_cache() -> str:
    """Folder for compiled kernels: one a host, and one a state of the kernels' sources.

    Numba looks only at the file of the function it loads, not at those that it calls.
    """
    sources = sorted((Path(__file__).parent / "image").glob("*.py"))
    sources += sorted((Path(__file__).parent / "gather").glob("*.py"))
    digest = hashlib.blake2b(b"".join(p.read_bytes() for p in sources), digest_size=6).hexdigest()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "nightloom" / f"numba-{socket.gethostname()}-{digest}")


# Read by numba when it is first imported; nothing is written before a kernel is compiled.
os.environ.setdefault("NUMBA_CACHE_DIR", _numba_cache())


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: the command starts faster."""
    if name in ("Archive", "open_archive"):
        from nightloom import archive

        return getattr(archive, name)
    raise AttributeError(f"module 'nightloom' has no attribute {name!r}")
