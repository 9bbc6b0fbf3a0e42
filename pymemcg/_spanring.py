# SPDX-License-Identifier: Apache-2.0
"""Spans in a ring, where they outlive the process that marked them: rows with the text of their reference; and names, apart.

csrc/spans.c writes them: all processes that use the ring append to the two channels, one at a time.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pymemcg import schema
from pymemcg.ring import ChannelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pymemcg.ring import Table
    from pymemcg.spans import Ref

ROWS: Final = 16384
NAMES: Final = 1024
"""Names that are told apart, (other) among them."""
_TEXTS: Final = tuple(f"text{i}" for i in range(8))
_REFS: Final = tuple(f"ref{i}" for i in range(5))
_REF_BYTES: Final = 8 * len(_REFS)
_NO_REF: Final = -1
_INT_REF: Final = -2
_SHOWN: Final = schema.SPANS_UNITS | {"pid": ""}


def specs() -> list[ChannelSpec]:
    """The two channels, their columns as csrc/spans.h numbers them: 2 MiB."""
    units = _SHOWN | {"ref_bytes": "bytes"} | dict.fromkeys(_REFS, "")
    return [ChannelSpec("spans", 0, ROWS, units), ChannelSpec("names", 0, NAMES, dict.fromkeys(_TEXTS, ""))]


def shown(table: Table) -> Table:
    """The `spans` channel of a ring as those of samplers and recordings: `ref_id` stands for the text; `pid` marked it."""
    units = {name: unit for name, unit in table.units.items() if name in _SHOWN}
    offsets = {name: offset for name, offset in table.offsets.items() if name in _SHOWN}
    return replace(table, units=units, offsets=offsets)


def whole(table: Table) -> bool:
    """Whether the `names` of a ring can be read."""
    return set(_TEXTS) <= table.units.keys()


def names(columns: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """The texts in rows of `names`."""
    return [_text(line) for line in _lines(columns, _TEXTS)]


def refs(columns: Mapping[str, NDArray[np.int64]]) -> list[Ref]:
    """The references of rows of `spans`; of a longer text its first 40 bytes, and an ellipsis."""
    if not {"ref_bytes", *_REFS} <= columns.keys():
        return []
    return [_ref(count, line) for count, line in zip(columns["ref_bytes"].tolist(), _lines(columns, _REFS), strict=True)]


def _lines(columns: Mapping[str, NDArray[np.int64]], wanted: tuple[str, ...]) -> list[bytes]:
    import numpy as np

    block, step = np.stack([columns[name] for name in wanted], axis=1).tobytes(), 8 * len(wanted)
    return [block[at : at + step] for at in range(0, len(block), step)]


def _text(line: bytes) -> str:
    return line.rstrip(b"\0").decode(errors="replace")


def _ref(count: int, line: bytes) -> Ref:
    if count == _INT_REF:
        return int.from_bytes(line[:8], sys.byteorder, signed=True)
    if count <= _NO_REF:
        return None
    return line[:count].decode(errors="replace") if count <= _REF_BYTES else line.decode(errors="ignore") + "…"


def texts(
    spans: Mapping[str, NDArray[np.int64]], slots: NDArray[np.int64], named: Mapping[str, NDArray[np.int64]], lost: int
) -> dict[str, Any]:
    """What a recording says of its spans beside their columns, as `_spanlog.Texts.info`.

    Args:
        spans: Columns of rows of `spans`.
        slots: Where they stand in the ring, which is what `ref_id` says.
        named: Columns of all rows of `names`.
        lost: Spans for which there was no room while another process held the lock.
    """
    found: list[Ref] = [None] * (int(slots.max()) + 1 if slots.size else 0)
    for slot, ref in zip(slots.tolist(), refs(spans), strict=False):
        found[slot] = ref
    pids = spans["pid"][-1:].tolist() if "pid" in spans else []
    return {"pid": pids[0] if pids else 0, "names": names(named), "refs": found, "refs_left_out": 0, "lost": lost}
