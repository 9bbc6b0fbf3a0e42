# SPDX-License-Identifier: Apache-2.0
"""The pages of a tracefs ring buffer, as `per_cpu/cpuN/trace_pipe_raw` hands them out: times in ns, which the text has in µs.

Their form is told by the kernel itself: events/header_page, events/header_event, and each event's `format`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_FIELD = re.compile(r"^\s*field:(?P<what>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);\s*signed:(?P<signed>[01]);$")
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_COMMITTED = (1 << 20) - 1
"""Above these bits of the header's second word are flags, of which bit 31 says that events were lost before this page."""
_HEADER = struct.Struct("=QQ")
_WORD = struct.Struct("=I")
_TOP_BITS = ~((1 << 59) - 1)
"""A time stamp of its own has 59 bits: the others are those of before."""


class Record(NamedTuple):
    """An event.

    Attributes:
        t_ns: By the instance's clock.
        event: Its name.
        tid: Of the thread that fired it.
        values: The fields that were asked for.
    """

    t_ns: int
    event: str
    tid: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the fields of an event are.

    Attributes:
        event: Its name.
        number: Its id, the first field of each record.
        form: Takes the thread's number and the wanted fields out of a record.
    """

    event: str
    number: int
    form: struct.Struct


def read_layout(text: str, fields: Sequence[str] = ()) -> Layout:
    """Read an event's `format` file.

    Sample::

        name: mm_vmscan_memcg_reclaim_end
        ID: 633
        format:
                field:unsigned short common_type;       offset:0;       size:2; signed:0;
                field:int common_pid;   offset:4;       size:4; signed:1;
                field:unsigned long nr_reclaimed;       offset:8;       size:8; signed:0;

        print fmt: "nr_reclaimed=%lu", REC->nr_reclaimed

    Args:
        text: The file.
        fields: Which are wanted beside `common_pid`, in the order in which the event has them.

    Raises:
        ValueError: One is not there, or not in that order.
    """
    event, number, places = "", -1, dict[str, tuple[int, str]]()
    for line in text.splitlines():
        if line.startswith("name: "):
            event = line[6:].strip()
        elif line.startswith("ID: "):
            number = int(line[4:])
        elif (match := _FIELD.match(line)) and int(match["size"]) in _CODES:
            code = _CODES[int(match["size"])]
            places[match["what"].split()[-1]] = (int(match["offset"]), code.lower() if match["signed"] == "1" else code)
    form, at = "=", 0
    for name in ("common_pid", *fields):
        offset, code = places.get(name, (-1, ""))
        if offset < at:
            raise ValueError(f"{event}: no field {name!r} where it was looked for")
        form += f"{offset - at}x{code}"
        at = offset + struct.calcsize(f"={code}")
    return Layout(event, number, struct.Struct(form))


def parse_page(page: bytes, layouts: Mapping[int, Layout]) -> Iterator[Record]:
    """The events of one page, in order.

    Args:
        page: As it was read.
        layouts: By event id; events without one are passed over.
    """
    t_ns, committed = _HEADER.unpack_from(page)
    at, end = _HEADER.size, _HEADER.size + (committed & _COMMITTED)
    while at < end:
        (word,) = _WORD.unpack_from(page, at)
        kind, delta = word & 31, word >> 5  # on a little-endian machine bit-fields begin at the lowest bit
        at += 4
        if kind == _PADDING:
            if delta == 0:  # to the end of the page
                return
            t_ns += delta
            at += _WORD.unpack_from(page, at)[0]
        elif kind in (_TIME_EXTEND, _TIME_STAMP):
            wide = (_WORD.unpack_from(page, at)[0] << 27) + delta
            t_ns = t_ns + wide if kind == _TIME_EXTEND else (t_ns & _TOP_BITS) | wide
            at += 4
        else:
            t_ns += delta
            size = kind * 4
            start = at
            if kind == 0:  # a long event says its length, this word included
                size, start = _WORD.unpack_from(page, at)[0], at + 4
            layout = layouts.get(page[start] | page[start + 1] << 8)
            if layout is not None:
                tid, *values = layout.form.unpack_from(page, start)
                yield Record(t_ns, layout.event, tid, tuple(values))
            at += size
