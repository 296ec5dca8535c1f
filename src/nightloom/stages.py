"""The recipes of every stage as things stand on disk: what would be made, from what, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from nightloom.config import Config, Target
from nightloom.engine.recipe import Outline, Recipe
from nightloom.gather.differential import ensemble_recipe
from nightloom.gather.join import field_recipe
from nightloom.gather.lightcurve import (
    LightcurveSettings,
    lightcurve_product,
    lightcurve_recipe,
)
from nightloom.plan.recipes import Plan, PlannedCube, PlannedFrame
from nightloom.reduce.cube import calibrated_frames, cube_outline, instrument_of, masters_of
from nightloom.reduce.lights import lights_outline
from nightloom.reduce.masters import master_outline
from nightloom.reduce.reference import (
    pinned_inputs,
    pinned_recipe,
    reference_recipe,
    reference_settings,
    spread,
)
from nightloom.reduce.stacks import stack_outline
from nightloom.reduce.stars import plate_recipe, stars_recipe
from nightloom.schema.cube import TARGETS
from nightloom.store.encodings import read_arrays
from nightloom.store.ledger import Expected
from nightloom.store.products import current, published_fingerprint


def master_recipes(root: Path, plan: Plan, config: Config, *, flats: bool) -> Iterator[Outline]:
    """Bias and dark masters, or the flats that are made with them; only those that are used."""
    return (
        master_outline(root, master, config.calibration)
        for master in plan.masters
        if master.product in plan.masters_used and (master.kit.image_type == "flat") == flats
    )


def lights_recipes(root: Path, plan: Plan, config: Config) -> Iterator[Outline]:
    """Maps of hot pixels from the frames of a night, where the plan wants them."""
    return (lights_outline(root, cube, config) for cube in plan.cubes if cube.lights)


def reference_of(root: Path, plan: Plan, config: Config, field: str) -> Recipe:
    """Recipe of a field's reference: the pinned one as it is, else a new one."""
    product = f"reference/{field}"
    cubes = plan.cubes_of(field)
    pinned = pinned_inputs(
        root, product, reference_settings(config), [cube.frames for cube in cubes]
    )
    if pinned is not None:
        return pinned_recipe(product, pinned, config)
    # One filter only: the one with most frames, so that the stack is of one depth.
    counts = dict.fromkeys(plan.filters_of(field), 0)
    for cube in cubes:
        counts[cube.filter] += len(cube.frames)
    main = max(counts, key=lambda name: counts[name])
    picked, start = spread(range(counts[main]), config.reference.max_candidates), 0
    sources: list[PlannedCube] = []
    for cube in plan.cubes_of(field, main):
        mine = [k - start for k in picked if start <= k < start + len(cube.frames)]
        sources += [cube.some(mine)] if mine else []
        start += len(cube.frames)
    items = tuple(item for cube in sources for item in calibrated_frames(root, cube, config))
    masters, lights = masters_of(sources), tuple(cube.lights for cube in sources if cube.lights)
    used = tuple((name, published_fingerprint(root, name)) for name in (*masters, *lights))
    recipe = reference_recipe(product, items, config, masters=used)
    return replace(recipe, needs=masters, uses=lights)


def plate_recipes(root: Path, plan: Plan, config: Config) -> list[Recipe]:
    """A plate a field."""
    return [
        plate_recipe(root, field, partial(_frame_named, plan, field), config)
        for field in plan.fields
    ]


def stars_recipes(root: Path, plan: Plan, config: Config) -> list[Recipe]:
    """A star list a field."""
    return [stars_recipe(root, field, config) for field in plan.fields]


def cube_recipes(root: Path, plan: Plan, config: Config) -> Iterator[Outline]:
    """A cube a field, night and filter."""
    return (cube_outline(root, cube, config) for cube in plan.cubes)


def stack_recipes(root: Path, plan: Plan, config: Config) -> Iterator[Outline]:
    """A stack a field, night and filter, where they are wanted."""
    cubes = plan.cubes if config.stack.nights else ()
    return (stack_outline(root, cube, config) for cube in cubes)


def field_recipes(root: Path, plan: Plan) -> list[Recipe]:
    """A joined store a field and filter."""
    return [field_recipe(root, plan.cubes_of(field, name)) for field, name in _pairs(plan)]


def ensemble_recipes(root: Path, plan: Plan, config: Config) -> list[Recipe]:
    """Differential curves of all stars, a field and filter."""
    return [ensemble_recipe(root, field, name, config.gather) for field, name in _pairs(plan)]


def lightcurve_recipes(root: Path, plan: Plan, config: Config) -> list[Recipe]:
    """A light curve a target and filter; where it lies in several fields, one for each."""
    recipes: list[Recipe] = []
    for target in config.target:
        places = located(root, plan, target)
        inside = [field for field, (star, _) in places.items() if star >= 0]
        fields = inside or list(places)[:1]
        for number, field in enumerate(fields):
            star, note = places[field]
            if not inside:
                note = _outside(target, places)
            for name in plan.filters_of(field):
                product = lightcurve_product(target.name, name, field=field if number else "")
                settings = _lightcurve_settings(plan, config, target, star, field, name)
                recipes.append(lightcurve_recipe(root, product, field, name, settings, note=note))
    return recipes


def _lightcurve_settings(
    plan: Plan, config: Config, target: Target, star: int, field: str, filter_name: str
) -> LightcurveSettings:
    """What a light curve depends on; the telescope is that of the field's first frame."""
    frame = plan.cubes_of(field, filter_name)[0].frames[0]
    return LightcurveSettings(
        target=target,
        star=star,
        aperture_m=frame.aperture_m if math.isfinite(frame.aperture_m) else None,
        scintillation_coefficient=instrument_of(config, frame.instrument).scintillation_coefficient,
    )


def located(root: Path, plan: Plan, target: Target) -> dict[str, tuple[int, str]]:
    """For each field where the target may lie: its star there, -1 for none, and how found."""
    places: dict[str, tuple[int, str]] = {}
    for field in plan.fields:
        if target.field not in (None, field):
            continue
        path = current(root, f"stars/{field}")
        if path is None:
            places[field] = (-1, "the field's star list is not made yet")
            continue
        columns = read_arrays(path, [v.name for v in TARGETS])
        for name, star, note in zip(
            columns["target"], columns["target_star"], columns["target_note"], strict=True
        ):
            if name == target.name:
                places[field] = (int(star), str(note))
    return places or dict.fromkeys(plan.fields[:1], (-1, f"its field {target.field!r} is unknown"))


def _outside(target: Target, places: dict[str, tuple[int, str]]) -> str:
    notes = {note for _, note in places.values()}
    if notes == {"outside the field"}:
        return f"{target.name} lies outside every field ({', '.join(sorted(places))})"
    return "; ".join(f"{field}: {note}" for field, (_, note) in sorted(places.items()))


def all_recipes(root: Path, plan: Plan, config: Config) -> Iterator[Recipe | Outline]:
    """Every product that the archive wants, inputs before what is made of them.

    What holds frames is an outline: its recipe is written where it is to be made.
    """
    yield from master_recipes(root, plan, config, flats=False)
    yield from master_recipes(root, plan, config, flats=True)
    yield from lights_recipes(root, plan, config)
    yield from (reference_of(root, plan, config, field) for field in plan.fields)
    yield from plate_recipes(root, plan, config)
    yield from stars_recipes(root, plan, config)
    yield from cube_recipes(root, plan, config)
    yield from stack_recipes(root, plan, config)
    yield from field_recipes(root, plan)
    yield from ensemble_recipes(root, plan, config)
    yield from lightcurve_recipes(root, plan, config)


def expected_of(recipes: Iterable[Recipe | Outline], notes: dict[str, str]) -> list[Expected]:
    """The ledger's lines of some recipes."""
    return [
        Expected(r.product, r.fingerprint, r.needs, r.uses, notes.get(r.product, ""))
        for r in recipes
    ]


def notes_of(plan: Plan) -> dict[str, str]:
    """What the plan chose for each cube and what it lacks, in words."""
    notes: dict[str, str] = {}
    for cube in plan.cubes:
        reasons = dict.fromkeys(reason for c in cube.choices for reason in c.reasons)
        notes[cube.product] = "; ".join(reasons)
    for master in plan.masters:
        if master.kit.image_type == "flat":
            notes[master.product] = "; ".join(master.choice.reasons[:2])
    return notes


def _pairs(plan: Plan) -> list[tuple[str, str]]:
    return [(field, name) for field in plan.fields for name in plan.filters_of(field)]


def _frame_named(plan: Plan, field: str, path: str) -> PlannedFrame | None:
    for cube in plan.cubes_of(field):
        for place in np.flatnonzero(cube.frames.column("path") == path).tolist():
            return cube.frames[place]
    return None
