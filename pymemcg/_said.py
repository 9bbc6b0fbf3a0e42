# SPDX-License-Identifier: Apache-2.0
"""What a file says of itself, and without what of it is damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def whole_info(data: bytes) -> dict[str, Any]:
    """The info in a file as it is.

    Raises:
        ValueError: It is no JSON.
        TypeError: It is no JSON object.
        RecursionError: Likewise.
    """
    info = json.loads(data or b"{}")
    if not isinstance(info, dict):
        raise TypeError("it is no JSON object")
    return info


def info_of(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """The info in a file without what of it is damaged, and what that is. Raises as `whole_info`."""
    info = whole_info(data)
    damaged = [key for key, is_whole in _WHOLE.items() if key in info and not is_whole(info[key])]
    return {key: value for key, value in info.items() if key not in damaged}, damaged


def level_names(info: Mapping[str, Any]) -> dict[int, str]:
    """What rows of `limits` call a level, to its group: those count that have a usage, which are sampled."""
    levels = info.get("target", {}).get("levels", [])
    sampled = [level for level in levels if "usage" in level.get("files", {})]
    return {number: level["name"] for number, level in enumerate(sampled) if "name" in level}


def _is_target(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(levels := value.get("levels", []), list):
        return False
    return all(
        isinstance(level, dict) and isinstance(level.get("name", ""), str) and isinstance(level.get("files", {}), dict)
        for level in levels
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(one is None or isinstance(one, str) for one in value.values())


def _is_spans(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("pid"), int)
        and isinstance(value.get("names"), list)
        and all(isinstance(name, str) for name in value["names"])
        and isinstance(value.get("refs"), list)
        and isinstance(value.get("refs_left_out", 0), int)
    )


_WHOLE: Final[dict[str, Callable[[Any], bool]]] = {
    "target": _is_target,
    "absent": _is_texts,
    "evidence": _is_texts,
    "spans": _is_spans,
    "page_bytes": lambda value: isinstance(value, int) and value > 0,
}
"""What is looked at of `info`, and what it has to be."""
