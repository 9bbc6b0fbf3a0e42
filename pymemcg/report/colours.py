# SPDX-License-Identifier: Apache-2.0
"""The colours of a report, on a light background and on a dark one."""

from __future__ import annotations

from typing import Final

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and lighter or darker ones of the same hues
# where a background needs that. No plot tells anything by colour alone: causes and spans have lanes, lines have labels.
PALETTES: Final[dict[str, dict[str, str]]] = {
    "light": {
        "text": "#333333",
        "grid": "#dddddd",
        "usage": "#0072b2",
        "working_set": "#009e73",
        "own_limit": "#d55e00",
        "other_limit": "#777777",
        "swap_backed": "#cc79a7",
        "file_backed": "#56b4e9",
        "refault": "#d55e00",
        "scan": "#0072b2",
        "steal": "#009e73",
        "reclaim": "#009e73",
        "uncharge": "#009e73",
        "hits": "#cc79a7",
        "some": "#0072b2",
        "full": "#d55e00",
        "span": "#9db8c9",
        "hit": "#d55e00",
        "limit": "#d55e00",
        "high": "#e69f00",
        "ancestor": "#cc79a7",
        "global": "#0072b2",
        "thrash": "#56b4e9",
        "swap": "#009e73",
        "oom_wait": "#000000",
        "unknown": "#777777",
        "harmless": "#c8c8c8",
    },
}
PALETTES["dark"] = PALETTES["light"] | {
    "text": "#d8d8d8",
    "grid": "#3c444b",
    "usage": "#56b4e9",
    "own_limit": "#ff8a3c",
    "other_limit": "#9a9a9a",
    "scan": "#56b4e9",
    "some": "#56b4e9",
    "full": "#ff8a3c",
    "refault": "#ff8a3c",
    "span": "#4c6475",
    "hit": "#ff8a3c",
    "limit": "#ff8a3c",
    "global": "#3d8fd1",
    "oom_wait": "#f0e442",
    "unknown": "#9a9a9a",
    "harmless": "#555c62",
}
