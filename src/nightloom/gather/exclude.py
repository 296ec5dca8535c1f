"""Expressions of `[gather] exclude`: epochs masked with no new reduction."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightloom.errors import ConfigError
from nightloom.schema.cube import FIELD, TIME

_COMPARE: dict[str, Callable[[Any, float], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
NUMBERS = tuple(v.name for v in FIELD if v.dims == (TIME,) and v.dtype != "str")
WORDS = tuple(v.name for v in FIELD if v.dims == (TIME,) and v.dtype == "str")


def names_in(expressions: tuple[str, ...]) -> tuple[str, ...]:
    """Variables that the expressions look at.

    Raises ConfigError: an expression is not `name operator value`, or the name is unknown.
    """
    return tuple(_parts(text)[0] for text in expressions)


def excluded(
    expressions: tuple[str, ...], columns: Mapping[str, NDArray[Any]], n_times: int
) -> NDArray[np.bool_]:
    """Epochs [time] for which any of the expressions holds."""
    out = np.zeros(n_times, dtype=bool)
    for text in expressions:
        name, compare, value = _parts(text)
        if name in WORDS:
            words = [str(word) for word in columns[name]]
            out |= np.array([bool(compare(word, value)) for word in words], dtype=bool)
        else:
            out |= np.asarray(compare(columns[name], float(value)), dtype=bool)
    return out


def _parts(text: str) -> tuple[str, Callable[[Any, Any], Any], str]:
    where = "[gather] exclude"
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(
            where=where,
            why=f"{text!r} is not `name operator value`",
            do='such as "background_level > 300"',
        )
    name, sign, value = match.groups()
    value = value.strip("'\"")
    if name not in NUMBERS + WORDS:
        raise ConfigError(
            where=where,
            why=f"{name!r} is nothing that an epoch has",
            do=f"known: {', '.join(NUMBERS + WORDS)}",
        )
    if name in NUMBERS:
        try:
            float(value)
        except ValueError:
            raise ConfigError(where=where, why=f"{value!r} in {text!r} is not a number") from None
    return name, _COMPARE[sign], value
