# SPDX-License-Identifier: Apache-2.0
"""What a collection says of itself is taken only where it has the form in which it is written."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Final

from pymemcg.explain._snapshot import LoggedKill, Meanwhile

_MOST: Final = (1 << 63) - 1
_LONGEST: Final = 4096  # PATH_MAX
_PAGES: Final = frozenset(1 << shift for shift in range(12, 19))
_FORMS: Final[dict[str, Any]] = {
    "target": str,
    "own": bool,
    "taken_realtime_ns": int | None,
    "page_bytes": int,
    "kills": tuple[LoggedKill, ...],
    "meanwhile": Meanwhile | None,
}


def check(notes: Mapping[str, Any]) -> None:
    """Check notes, each of which may be missing.

    Raises:
        ValueError: One has another form.
    """
    for name, form in _FORMS.items():
        if name in notes:
            _check(name, notes[name], form)
    target = notes.get("target", "self")
    if not target or len(target) > _LONGEST or "\0" in target:
        raise ValueError("target is none")
    if notes.get("page_bytes", 4096) not in _PAGES:
        raise ValueError("page_bytes is no size of a page")


def _check(name: str, value: Any, form: Any) -> None:
    origin, inner = typing.get_origin(form), typing.get_args(form)
    if isinstance(form, types.UnionType):
        if value is not None:
            _check(name, value, inner[0])  # each is "something or None"
    elif dataclasses.is_dataclass(form) and isinstance(form, type):
        _check_fields(name, value, form)
    elif origin is tuple:
        for one in _of(name, value, list):
            _check(name, one, inner[0])
    elif origin is Mapping:
        for key, one in _of(name, value, dict).items():
            _check(f"{name}.{key}", one, inner[1])
    else:
        _check_plain(name, value, form)


def _check_plain(name: str, value: Any, form: Any) -> None:
    if form is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} is no number")
    elif type(value) is not form:
        raise ValueError(f"{name} is no {form.__name__}")
    elif form is int and not 0 <= value <= _MOST:
        raise ValueError(f"{name} is no count")


def _check_fields(name: str, value: Any, form: type) -> None:
    forms = typing.get_type_hints(form)
    if set(_of(name, value, dict)) != set(forms):
        raise ValueError(f"{name} has not the keys {', '.join(forms)}")
    for key, one in forms.items():
        _check(f"{name}.{key}", value[key], one)


def _of(name: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{name} is no {kind.__name__}")
    return value
