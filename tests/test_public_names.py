"""The public list and what is there agree; importing needs no network."""

from __future__ import annotations

import subprocess
import sys

import nightloom

NO_NETWORK = """
import socket
def refuse(*a, **k): raise OSError("no network here")
socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
import pkgutil, importlib, nightloom
for info in pkgutil.walk_packages(nightloom.__path__, "nightloom."):
    importlib.import_module(info.name)
"""


def test_every_public_name_is_there() -> None:
    for name in nightloom.__all__:
        assert getattr(nightloom, name) is not None
    assert sorted(nightloom.__all__) == nightloom.__all__


def test_import_of_everything_without_network() -> None:
    """Trap 26: an import that calls a server hangs when it is down."""
    subprocess.run([sys.executable, "-c", NO_NETWORK], check=True, timeout=60)
