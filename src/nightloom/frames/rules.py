"""How the headers of a frame are to be read: shipped dialects and the user's profiles, merged.

`data/instruments/generic.toml` names the header keys of each column; a dialect says only what
differs, and is found by what its `match` says. A profile of nightloom.toml goes over both.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files

from nightloom.config import Instrument
from nightloom.errors import ConfigError
from nightloom.frames.cards import Cards, text_of

GENERIC = "generic"
NO_SECTION = "none"  # a profile that wants none, whatever the header says
# Frame-table columns that a profile may take from a header key of its choice.
KEY_COLUMNS = (
    "object",
    "filter",
    "image_type",
    "exposure_s",
    "jd_utc",
    "ra_deg",
    "dec_deg",
    "binning",
    "overscan_section",
    "data_section",
    "gain_e_per_adu",
    "read_noise_e",
    "read_mode",
    "ccd_temp_c",
    "pixel_scale_arcsec",
    "saturation_adu",
    "site_lat_deg",
    "site_lon_deg",
    "site_height_m",
)
_FIXED = (
    "gain_e_per_adu",
    "read_noise_e",
    "saturation_adu",
    "pixel_scale_arcsec",
    "aperture_m",
    "site_lat_deg",
    "site_lon_deg",
    "site_height_m",
)
_SECTIONS = ("overscan_section", "data_section")


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that says how a header becomes a row."""

    name: str = GENERIC
    match: Mapping[str, str] = field(default_factory=dict)
    profile: str = ""  # name of the user's profile, '' without one
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)  # column -> the user's value
    site: Mapping[str, float] = field(default_factory=dict)  # column -> where the header has none
    sections: Mapping[str, str] = field(default_factory=dict)  # column -> the user's text
    types: Mapping[str, str] = field(default_factory=dict)  # image type -> glob on the path
    image_type: str = ""  # of frames whose header, folder and name tell none
    time_is: str = ""  # start, mid, end; '' lets the card's comment say
    time_zone_h: float | None = None
    time_doubt: str = ""  # why times of this dialect are not to be trusted without a zone
    twelve_hour_clock: bool = False
    exposure_unit: str = ""  # s, ms, us, min; '' lets the card's comment say
    longitude_is_west: bool = False
    temperature_is_kelvin: bool = False
    decimal_comma: bool = False


@cache
def dialects() -> tuple[Rules, ...]:
    """The shipped dialects by name, the generic rules last."""
    folder = files("nightloom") / "data" / "instruments"
    tables = {
        entry.name.removesuffix(".toml"): tomllib.loads(entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }
    generic = _rules(GENERIC, tables.pop(GENERIC), Rules())
    return (*(_rules(name, tables[name], generic) for name in sorted(tables)), generic)


def choose_rules(
    cards: Cards,
    instruments: tuple[tuple[str, Instrument], ...],
    cache: dict[tuple[str, str], Rules],
) -> Rules:
    """The rules for a header: the first profile and the first dialect that match it.

    `cache` is the caller's, keyed by both names: merging is done once a chunk.
    """
    profile = next(
        ((name, one) for name, one in instruments if _matches(cards, one.match)), ("", None)
    )
    dialect = next(rules for rules in dialects() if _matches(cards, rules.match))
    key = (profile[0], dialect.name)
    if key not in cache:
        cache[key] = dialect if profile[1] is None else _merge(profile[0], profile[1], dialect)
    return cache[key]


def check_profiles(instruments: Mapping[str, Instrument]) -> None:
    """Raise ConfigError where a profile fills a column that no header key can fill."""
    for name, profile in instruments.items():
        for column in profile.keys:
            if column not in KEY_COLUMNS:
                near = difflib.get_close_matches(column, KEY_COLUMNS, n=1)
                do = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KEY_COLUMNS)}"
                where = f"instrument.{name}.keys.{column}"
                raise ConfigError(where=where, why="is no column that a key can fill", do=do)


def _matches(cards: Cards, match: Mapping[str, str]) -> bool:
    return all(key in cards and fnmatchcase(text_of(cards, key), match[key]) for key in match)


def _rules(name: str, table: dict[str, object], under: Rules) -> Rules:
    known = {one.name for one in fields(Rules)}
    unknown = set(table) - known
    if unknown:
        raise ConfigError(where=f"dialect {name}", why=f"unknown keys {sorted(unknown)}")
    keys = table.pop("keys", {})
    assert isinstance(keys, dict)
    merged = {**under.keys, **{column: tuple(names) for column, names in keys.items()}}
    return replace(under, name=name, keys=merged, **table)  # type: ignore[arg-type]


def _merge(name: str, profile: Instrument, dialect: Rules) -> Rules:
    keys = {**dialect.keys, **{column: (key,) for column, key in profile.keys.items()}}
    fixed = {column: getattr(profile, column) for column in _FIXED}
    sections = {column: getattr(profile, column) for column in _SECTIONS}
    unit = profile.exposure_unit if "exposure_unit" in profile.model_fields_set else ""
    return replace(
        dialect,
        profile=name,
        keys=keys,
        fixed={column: value for column, value in fixed.items() if value is not None},
        sections={column: text for column, text in sections.items() if text is not None},
        types={str(kind): glob for kind, glob in profile.types.items()},
        time_is=profile.time_is or dialect.time_is,
        time_zone_h=profile.time_zone_h,
        exposure_unit=unit or dialect.exposure_unit,
        decimal_comma=profile.decimal_comma,
    )
