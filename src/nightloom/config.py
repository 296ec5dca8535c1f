"""nightloom.toml read into frozen models; unknown keys are refused by name.

Each section holds exactly what some recipe hashes, so a change there makes again what depends
on it and nothing else. Relative paths are relative to the file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nightloom.errors import ConfigError
from nightloom.schema.frames import ImageType

CONFIG_NAME = "nightloom.toml"
ApertureKind = Literal["fwhm", "px", "optimal"]


class Section(BaseModel):
    """A table of the file: frozen, no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ArchiveSection(Section):
    frames: tuple[str, ...] = Field(min_length=1)  # folders or globs
    products: str = "products"


class Instrument(Section):
    """How the headers of one camera are to be read, where they do not suffice."""

    match: dict[str, str] = {}  # header key -> value or glob; all must match
    types: dict[ImageType, str] = {}  # image type -> glob on the path
    keys: dict[str, str] = {}  # frame-table column -> header key
    gain_e_per_adu: float | None = Field(None, gt=0)
    read_noise_e: float | None = Field(None, ge=0)
    saturation_adu: float | None = Field(None, gt=0)
    nonlinear_adu: float | None = Field(None, gt=0)
    pixel_scale_arcsec: float | None = Field(None, gt=0)
    aperture_m: float | None = Field(None, gt=0)  # diameter of the telescope, for scintillation
    scintillation_coefficient: float = Field(1.5, gt=0)  # of the site: C_Y of Osborn et al. 2015
    overscan_section: str | None = None  # "[x1:x2,y1:y2]" of the file, from 1; "none"
    data_section: str | None = None  # likewise; what is outside is never used
    site_lat_deg: float | None = Field(None, ge=-90, le=90)
    site_lon_deg: float | None = Field(None, ge=-180, le=360)
    site_height_m: float | None = None
    time_is: Literal["start", "mid", "end"] | None = None
    time_zone_h: float | None = Field(None, ge=-14, le=14)  # local time minus UTC
    exposure_unit: Literal["s", "ms", "us", "min"] = "s"
    decimal_comma: bool = False


class CatalogSection(Section):
    files: tuple[str, ...] = ()


class Target(Section):
    """A star of interest: by place on the sky, or by pixel in the reference of a field."""

    name: str = Field(min_length=1)
    ra: float | None = Field(None, ge=0, lt=360)  # deg, ICRS
    dec: float | None = Field(None, ge=-90, le=90)  # deg, ICRS
    pmra: float = 0.0  # mas/yr, with cos(dec)
    pmdec: float = 0.0  # mas/yr
    epoch: float = 2000.0  # year of ra, dec
    x: float | None = None
    y: float | None = None
    field: str | None = None  # id of the field that x, y belong to

    @model_validator(mode="after")
    def _one_place(self) -> Target:
        on_sky = self.ra is not None and self.dec is not None
        in_pixels = self.x is not None and self.y is not None
        if on_sky == in_pixels:
            raise ValueError("needs either ra and dec, or x and y")
        return self


class CalibrationSection(Section):
    """Which frames make a master, and which master a frame may use."""

    max_days_bias: int = Field(30, ge=0)
    max_days_dark: int = Field(30, ge=0)
    max_days_flat: int = Field(60, ge=0)
    max_temp_difference_c: float = Field(2.0, gt=0)
    combine: Literal["median", "clipped_mean"] = "median"
    lights_map: bool | None = None  # hot pixels from the frames; None: where there is no dark
    trim_px: int = Field(0, ge=0)  # ignored border: left, right, bottom and top
    cosmic_rays: bool = False  # needs astroscrappy; costs more than all the rest of a frame


class ReferenceSection(Section):
    max_candidates: int = Field(60, ge=1)
    max_frames: int = Field(30, ge=1)
    plate_tolerance_arcsec: float = Field(3.0, gt=0)


def _default_radii() -> tuple[float, ...]:
    return tuple(round(0.3 + 0.1 * k, 2) for k in range(30))


class PhotometrySection(Section):
    radii_fwhm: tuple[float, ...] = _default_radii()
    radii_px: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0, 8.0)
    optimal: bool = False  # one more aperture: profile-weighted (Naylor 1998)
    background: Literal["annulus_median", "annulus_mode", "mesh"] = "annulus_median"
    annulus_fwhm: tuple[float, float] = (4.0, 7.0)
    max_stars: int = Field(200, ge=1)
    centroid: Literal["windowed", "quadratic", "gaussian2d", "ballet", "none"] = "windowed"
    ballet_weights: str = ""  # .npz in place of the shipped network, absolute once it is loaded
    detection_sigma: float = Field(5.0, gt=0)
    max_elongation: float = Field(2.5, gt=1)
    min_matched: int = Field(5, ge=3)

    @property
    def aperture_kinds(self) -> tuple[ApertureKind, ...]:
        """What each aperture is, in their order."""
        kinds: list[ApertureKind] = ["fwhm" for _ in self.radii_fwhm]
        kinds += ["px" for _ in self.radii_px]
        return (*kinds, "optimal") if self.optimal else tuple(kinds)

    @field_validator("radii_fwhm", "radii_px")
    @classmethod
    def _rising(cls, radii: tuple[float, ...]) -> tuple[float, ...]:
        if any(r <= 0 for r in radii) or list(radii) != sorted(set(radii)):
            raise ValueError("radii must be above zero and rise")
        return radii

    @model_validator(mode="after")
    def _some_radius(self) -> PhotometrySection:
        if not self.radii_fwhm and not self.radii_px:
            raise ValueError("radii_fwhm and radii_px are both empty: nothing to measure")
        if not 0 < self.annulus_fwhm[0] < self.annulus_fwhm[1]:
            raise ValueError("annulus_fwhm must be two rising radii above zero")
        return self


class GatherSection(Section):
    exclude: tuple[str, ...] = ()  # "background_level > 300"
    max_comparisons: int = Field(50, ge=1)


class StackSection(Section):
    nights: bool = False  # a stack of each night beside its cube


class RunSection(Section):
    max_quarantined: float = Field(0.2, ge=0, le=1)  # fraction of a night's science frames


class Config(Section):
    """All of nightloom.toml; `folder` is where relative paths start."""

    folder: Path = Field(Path(), exclude=True)
    archive: ArchiveSection
    instrument: dict[str, Instrument] = {}
    catalog: CatalogSection = CatalogSection()
    target: tuple[Target, ...] = ()
    calibration: CalibrationSection = CalibrationSection()
    reference: ReferenceSection = ReferenceSection()
    photometry: PhotometrySection = PhotometrySection()
    stack: StackSection = StackSection()
    gather: GatherSection = GatherSection()
    run: RunSection = RunSection()

    @field_validator("target")
    @classmethod
    def _names_differ(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        names = [target.name for target in targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two targets are named {twice[0]!r}")
        return targets

    @property
    def products_path(self) -> Path:
        return (self.folder / self.archive.products).resolve()

    def catalog_paths(self) -> tuple[Path, ...]:
        return tuple((self.folder / name).resolve() for name in self.catalog.files)


def load_config(path: Path) -> Config:
    """The configuration of a file.

    Raises ConfigError: no such file, no TOML, an unknown key, a value out of range.
    """
    data = read_toml(path, do="name one with --config, or: nightloom init")
    if "folder" in data:
        raise ConfigError(where=f"{path}: folder", why="is no key of nightloom.toml")
    try:
        config = Config(**data)
    except ValidationError as error:
        raise explained(path, error, _known_keys) from None
    folder = path.resolve().parent
    photometry = config.photometry
    if photometry.ballet_weights:
        weights = str((folder / photometry.ballet_weights).resolve())
        photometry = photometry.model_copy(update={"ballet_weights": weights})
    return config.model_copy(update={"folder": folder, "photometry": photometry})


def read_toml(path: Path, *, do: str) -> dict[str, Any]:
    """What a TOML file says. Raises ConfigError: no such file (then `do` helps), no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(where=str(path), why="no such file", do=do) from None
    except OSError as error:
        raise ConfigError(where=str(path), why=error.strerror or "can't be read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(where=str(path), why=f"not valid TOML: {error}") from None


def explained(
    path: Path, error: ValidationError, known_keys: Callable[[list[str]], Iterable[str]]
) -> ConfigError:
    """What a model refused, as the file's author would say it; known_keys: of a section."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"]]
    where = f"{path}: {'.'.join(keys)}" if keys else str(path)
    more = f"; {error.error_count() - 1} more after this" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = sorted(known_keys(keys[:-1]))
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        do = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return ConfigError(where=where, why="unknown key" + more, do=do)
    if first["type"] == "missing":
        return ConfigError(where=where, why="is missing" + more, do="add it")
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f"{given!r}: " if isinstance(given, str | int | float | bool) else ""
    return ConfigError(where=where, why=shown + message + more)


def _known_keys(path: list[str]) -> list[str]:
    """Names of the keys of the section at `path`."""
    sections: dict[str, type[Section]] = {
        "archive": ArchiveSection,
        "instrument": Instrument,
        "catalog": CatalogSection,
        "target": Target,
        "calibration": CalibrationSection,
        "reference": ReferenceSection,
        "photometry": PhotometrySection,
        "stack": StackSection,
        "gather": GatherSection,
        "run": RunSection,
    }
    chosen = sections.get(path[0], Config) if path else Config
    return [name for name in chosen.model_fields if name != "folder"]
