"""Results that change without a new version fail here (tests/freezing.py makes them anew)."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from freezing import FROZEN, differing, summaries, unversioned


@pytest.fixture(scope="module")
def then() -> dict[str, Any]:
    frozen: dict[str, Any] = json.loads(FROZEN.read_text(encoding="utf-8"))
    return frozen


def test_products_are_what_their_versions_say(then: dict[str, Any], tmp_path: Path) -> None:
    """To the bit in the recorded environment, else within 1e-6."""
    now = summaries(tmp_path)
    if now["frames"] != then["frames"]:
        pytest.skip("this machine's arithmetic draws other frames: nothing to compare with")
    changed = differing(now, then)
    assert not changed, (
        "came out otherwise: raise the version of what was changed, then run tests/freezing.py"
    )
    assert {p: e["version"] for p, e in now["products"].items()} == {
        p: e["version"] for p, e in then["products"].items()
    }


def test_a_changed_number_is_named(then: dict[str, Any]) -> None:
    now = deepcopy(then)
    cube = next(p for p in then["products"] if p.startswith("cube/"))
    now["products"][cube]["digest"] = "0" * 20
    assert differing(now, then) == [cube]
    assert unversioned(now, then) == ["cube"]
    now["products"][cube]["version"] += 1
    assert unversioned(now, then) == []
    now["environment"]["cpu"] = "another"
    assert differing(now, then) == []
    now["products"][cube]["samples"]["flux"][3] *= 1.01
    assert differing(now, then) == [cube]
