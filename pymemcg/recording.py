# SPDX-License-Identifier: Apache-2.0
"""Recordings: the ring's own format in a file, mapped back as the same channels."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from pymemcg import schema
from pymemcg._remains import Remains
from pymemcg._stall import POLICY
from pymemcg.channel import Channel, Channels
from pymemcg.detecting import stalls
from pymemcg.errors import RecordingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pymemcg._hit import Hits, Summary
    from pymemcg.detecting import Policy, Stalls


class Recording(Channels):
    """The channels of a recording or of a ring file, as a sampler has them; one that was not recorded has no columns.

    Of a ring that a process uses now it has what was there when it was opened, in memory.

    Args:
        path: The file.

    Attributes:
        path: The file.
        info: What it says of itself: target, kernel, host, what was absent and why.
        header: A copy of the file's header, as docs/file-format.md has it; its `state` tells of the sampler.
        is_ring: It is a sampler's ring, not a finished recording.
        is_copy: It is a ring's copy on a disk, which is made ten times a second.
        live: It is a ring that a process used when it was opened.

    Raises:
        RecordingError: It cannot be opened, is no recording, of another version, or nothing of it can be read. Of a file that
            is damaged, or cut short, it has what can be read; `missing` tells what is not there.

    Thread-safe. Arrays keep the file mapped.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
        except OSError as error:
            raise RecordingError(f"cannot be opened: {error.strerror}", path=self.path) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RecordingError("is no file", path=self.path)
            self._ring = ring = Remains(fd, self.path)
        finally:
            os.close(fd)
        self.info: dict[str, Any] = ring.info
        self.header: Any = ring.header
        self.is_ring, self.is_copy, self.live = ring.is_ring, ring.is_copy, ring.live
        for name in schema.CHANNELS:
            setattr(self, name, Channel(name, ring, ring.tables.get(name), live=False))

    @property
    def missing(self) -> dict[str, str]:
        """What is damaged and cannot be read, and why: by channel, or "file", "header", "info". Looks at the times of all rows.

        Rows whose times are none, or not between those of the rows beside them, are left out of their channel, and a channel
        that is damaged so is copied where it is used.
        """
        return self._ring.missing

    def hits(self, *, min_ns: int = 0) -> Hits:
        """The recorded spans that fell together with reclaim; see `Sampler.hits`."""
        from pymemcg import _hitting

        return _hitting.recorded(self).hits(min_ns=min_ns)

    def summary(self) -> Summary:
        """How long the recorded spans took, by name, with and without what they lost to reclaim."""
        from pymemcg import _hitting

        return _hitting.recorded(self).summary()

    def _marked(self) -> tuple[dict[str, NDArray[np.int64]], dict[str, Any]] | None:
        """Columns of the spans, and what they mean; None without spans."""
        said, window = self.info.get("spans"), self.spans.window()
        return ({name: window[name] for name in window.names}, said) if said and len(window) else None

    def stalls(self, *, min_ns: int = 0, evidence: str = "auto", policy: Policy = POLICY) -> Stalls:
        """Find all stalls in it; see `pymemcg.stalls`."""
        return stalls(self, min_ns=min_ns, evidence=evidence, policy=policy)

    def __repr__(self) -> str:
        return f"<Recording {self.path!r}: {self.usage.head} rows of usage>"


def open(path: str | os.PathLike[str]) -> Recording:  # noqa: A001 - as in gzip.open
    """Open a recording; see `Recording`."""
    return Recording(path)
