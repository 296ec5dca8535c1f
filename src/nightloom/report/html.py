"""Links, pictures and tables as values, and the templates that turn them into HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from nightloom.report.figures import png


@dataclass(frozen=True, slots=True)
class Link:
    """Text that leads to a page; without an address it names the page one is on."""

    text: str
    href: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG inside a page; `wide` ones keep their width on a narrow screen and scroll."""

    base64: str
    alt: str
    caption: str = ""
    wide: bool = False


Cell = str | Link | Picture


@dataclass(frozen=True, slots=True)
class Table:
    """Columns whose name begins with # hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    lead: str = ""


def picture(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A figure for a page; alt: what it shows, for who can't see it."""
    return Picture(base64.b64encode(png(figure)).decode("ascii"), alt, caption)


def wide_picture(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A figure as wide as the page."""
    return Picture(base64.b64encode(png(figure)).decode("ascii"), alt, caption, wide=True)


def render(template: str, values: Mapping[str, object]) -> str:
    """A page from a template of this package; text in values is escaped."""
    environment = Environment(
        loader=PackageLoader("nightloom.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
