# SPDX-License-Identifier: Apache-2.0
"""neighbour.py FILE LIMIT: the first process of a container that is looked at from beside. SIGUSR1 lets it fill its group.

It reads as much of a file as its group may hold, and a half more, which makes the kernel reclaim.
"""

from __future__ import annotations

import os
import signal
import sys

PIECE = 1 << 20
buffer = bytearray(PIECE)


def fill(*_: object) -> None:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    for offset in range(0, int(sys.argv[2]) * 3 // 2, PIECE):
        os.preadv(fd, [buffer], offset)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


signal.signal(signal.SIGUSR1, fill)
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
