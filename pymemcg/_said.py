# SPDX-License-Identifier: Apache-2.0
"""What a file says of itself, without what of it is damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable


def info_of(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """The info in a file, and what of it is damaged.

    Raises:
        ValueError: It is no JSON.
        TypeError: It is no JSON object.
        RecursionError: Likewise.
    """
    info = json.loads(data or b"{}")
    if not isinstance(info, dict):
        raise TypeError("it is no JSON object")
    damaged = [key for key, is_whole in _WHOLE.items() if key in info and not is_whole(info[key])]
    return {key: value for key, value in info.items() if key not in damaged}, damaged


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
    "target": lambda value: isinstance(value, dict) and isinstance(value.get("levels", []), list),
    "absent": _is_texts,
    "evidence": _is_texts,
    "spans": _is_spans,
    "page_bytes": lambda value: isinstance(value, int) and value > 0,
}
"""What is looked at of `info`, and what it has to be."""
