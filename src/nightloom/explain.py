"""Why a product would be made again, or why it is not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nightloom.engine.recipe import Recipe
from nightloom.store.encodings import read_attributes
from nightloom.store.products import current, read_attempt

MOST_NAMED = 5


def explain(root: Path, recipe: Recipe) -> list[str]:
    """Reasons in words, the deciding ones first; one that says "up to date" where it is."""
    path = current(root, recipe.product)
    reasons: list[str] = []
    if path is None:
        reasons.append("was never made")
    elif path.stem == recipe.fingerprint:
        reasons.append("is up to date: inputs, settings and version are those it was made with")
    elif path.suffix == ".zarr":
        reasons += _differences(read_attributes(path), recipe)
    else:
        reasons.append("what it shows has changed")
    attempt = read_attempt(root, recipe.product)
    if attempt is not None and attempt.outcome != "done":
        when = f" on {attempt.started}" if attempt.started else ""
        same = attempt.fingerprint == recipe.fingerprint
        again = "not tried again as it is" if same else "will be tried again"
        reasons.append(f"the last attempt{when} was {attempt.outcome}: {attempt.reason} ({again})")
    reasons += [f"{name} must be made first" for name in recipe.needs if not current(root, name)]
    return reasons


def _differences(attributes: Mapping[str, Any], recipe: Recipe) -> list[str]:
    reasons: list[str] = []
    old_settings = attributes["settings"]
    settings = {} if recipe.settings is None else recipe.settings.model_dump(mode="json")
    for key in sorted({*old_settings, *settings}):
        if old_settings.get(key) != settings.get(key):
            reasons.append(
                f"setting {key}: was {_short(old_settings.get(key))}, "
                f"is {_short(settings.get(key))}"
            )
    if attributes["algorithm_version"] != recipe.version:
        old = attributes["algorithm_version"]
        reasons.append(f"version of its algorithm: was {old}, is {recipe.version}")
    old_inputs = {name: digest for name, digest in attributes["inputs"]}
    inputs = dict(recipe.inputs)
    reasons += _named("new input", [n for n in inputs if n not in old_inputs])
    reasons += _named("input gone", [n for n in old_inputs if n not in inputs])
    changed = [n for n in inputs if n in old_inputs and old_inputs[n] != inputs[n]]
    reasons += _named("input changed", changed)
    return reasons or ["the order of its inputs changed"]


def _named(what: str, names: list[str]) -> list[str]:
    more = len(names) - MOST_NAMED
    said = [f"{what}: {name}" for name in names[:MOST_NAMED]]
    return said + ([f"{what}: {more} more"] if more > 0 else [])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
