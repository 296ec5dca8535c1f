"""Weights of the centroid network: those that the configuration names, or the shipped ones."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file
from pathlib import Path
from zipfile import BadZipFile

from nightloom.config import PhotometrySection
from nightloom.errors import ConfigError
from nightloom.image.ballet import SHIPPED
from nightloom.image.network import Network, load_weights
from nightloom.store.fingerprint import digest_of_file

_WHERE = "photometry.ballet_weights"


def network_of(path: str) -> Network:
    """The network of a file, read once as long as it does not change.

    Raises ConfigError: it can't be read or is no such network.
    """
    try:
        return _network(path, Path(path).stat().st_mtime_ns)
    except (OSError, ValueError, BadZipFile) as error:
        raise ConfigError(
            where=_WHERE, why=f"{path}: {error}", do="an .npz as load_weights describes it"
        ) from None


def digest_of_weights(photometry: PhotometrySection) -> str:
    """Digest of the weights' content, which results depend on; "" where no network is asked.

    Raises ConfigError: the file can't be read.
    """
    path = photometry.ballet_weights
    if photometry.centroid != "ballet":
        return ""
    if not path:
        return _digest_of_shipped()
    try:
        return _digest(path, Path(path).stat().st_mtime_ns)
    except OSError as error:
        raise ConfigError(where=_WHERE, why=f"{path}: {error.strerror}") from None


@lru_cache(maxsize=2)
def _network(path: str, _modified_ns: int) -> Network:
    return load_weights(Path(path))


@lru_cache(maxsize=1)
def _digest_of_shipped() -> str:
    with as_file(SHIPPED) as path:
        return digest_of_file(path)


@lru_cache(maxsize=2)
def _digest(path: str, _modified_ns: int) -> str:
    # The settings of each cube ask for it.
    return digest_of_file(Path(path))
