# SPDX-License-Identifier: Apache-2.0
"""Swap in compressed memory, for a while: without swap there is nothing that a group's anonymous memory could go to."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

from pymemcg.errors import NotSupported

if TYPE_CHECKING:
    from types import TracebackType

_CONTROL = "/sys/class/zram-control"


class ZramSwap:
    """A zram device of our own as swap, used first of all swap, and gone again afterwards.

    Args:
        size_bytes: How much can be swapped out.

    Raises:
        NotSupported: It cannot be made here.
    """

    def __init__(self, size_bytes: int) -> None:
        try:
            with open(f"{_CONTROL}/hot_add", encoding="ascii") as file:  # reading makes a device and gives its number
                self._number: int | None = int(file.read())
        except OSError as error:
            raise NotSupported(
                f"no zram device can be made: {error.strerror}",
                path=f"{_CONTROL}/hot_add",
                hint="as root, with the kernel's zram (modprobe zram)",
            ) from error
        self.device = f"/dev/zram{self._number}"
        self._on = False
        try:
            self._start(size_bytes)
        except BaseException:
            self.close()
            raise

    def _start(self, size_bytes: int) -> None:
        try:
            with open(f"/sys/block/zram{self._number}/disksize", "w", encoding="ascii") as file:
                file.write(str(size_bytes))
            with open(self.device, "r+b") as file:
                file.write(swap_header(size_bytes, os.sysconf("SC_PAGESIZE")))
        except OSError as error:
            raise NotSupported(f"cannot be set up as swap: {error.strerror}", path=error.filename) from error
        libc = ctypes.CDLL(None, use_errno=True)
        first = 0x8000 | 0x7FFF  # SWAP_FLAG_PREFER and the highest priority
        if libc.swapon(self.device.encode(), first) != 0:
            raise NotSupported(f"swapon: {os.strerror(ctypes.get_errno())}", path=self.device, hint="needs CAP_SYS_ADMIN")
        self._on = True

    def close(self) -> None:
        """Take it away; what is in it goes back into memory."""
        if self._on:
            ctypes.CDLL(None).swapoff(self.device.encode())
            self._on = False
        if self._number is not None:
            with open(f"{_CONTROL}/hot_remove", "w", encoding="ascii") as file:
                file.write(str(self._number))
            self._number = None

    def __enter__(self) -> ZramSwap:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def swap_header(size_bytes: int, page_bytes: int) -> bytes:
    """The first page of a swap area, as mkswap writes it: version, last page, no bad pages, and the signature at its end."""
    last_page = size_bytes // page_bytes - 1
    page = bytearray(page_bytes)
    struct.pack_into("=III", page, 1024, 1, last_page, 0)
    page[-10:] = b"SWAPSPACE2"
    return bytes(page)
