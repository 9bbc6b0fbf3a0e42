# SPDX-License-Identifier: Apache-2.0
"""Channels of recordings, so many rows at a time: memory stays the same however long they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymemcg.channel import Channel, Window

CHUNK: Final = 1 << 18
"""Rows at a time, and in a row group of Parquet: 2 MiB a column."""


def chunks(channel: Channel, rows: int = CHUNK) -> Iterator[Window]:
    """All rows of a recording's channel; what was looked at is taken out of this process's memory."""
    window = channel.window()
    for first in range(0, len(window), rows):
        part = window.part(first, first + rows)
        yield part
        channel.forget(part.first_row + len(part))
