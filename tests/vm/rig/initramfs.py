# SPDX-License-Identifier: Apache-2.0
"""The first file system of a guest: busybox, the modules that it needs, our init, and what it is to do."""

from __future__ import annotations

import lzma
import re
import shutil
from pathlib import Path

# In the order in which they are loaded, after what they depend on; what a kernel has built in has no file.
MODULES = (
    "virtio_pci virtio_console virtio_blk virtiofs overlay crc32c_generic ext4 lzo lzo-rle lz4 zstd zram".split()  # noqa: SIM905
)


def build(modules: Path, files: dict[str, str]) -> bytes:
    """A cpio archive; `files` are texts for its root."""
    archive = _Archive()
    for folder in ("bin", "dev", "lower", "modules", "proc", "root", "sys", "upper"):
        archive.add(folder, b"", 0o040755)
    archive.add("bin/busybox", Path(shutil.which("busybox") or "").read_bytes(), 0o100755)
    archive.add("init", (Path(__file__).parent / "init").read_bytes(), 0o100755)
    for number, (name, module) in enumerate(_with_dependencies(modules).items()):
        archive.add(f"modules/{number:02}-{name}.ko", module, 0o100644)
    for name, text in files.items():
        archive.add(name, text.encode(), 0o100644)
    return archive.finish()


def _with_dependencies(modules: Path) -> dict[str, bytes]:
    """Names and contents in an order in which they can be loaded."""
    at: dict[str, Path] = {}
    for pattern in ("*.ko", "*.ko.xz"):
        at.update({path.name.split(".")[0].replace("-", "_"): path for path in modules.rglob(pattern)})
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in found or name not in at:
            return
        content = at[name].read_bytes()
        if at[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)  # modules.dep is only made where a kernel is installed
        for dependency in depends[1].decode().split(",") if depends else []:
            add(dependency)
        found[name] = content

    for name in MODULES:
        add(name)
    return found


class _Archive:
    """Writes cpio's format `newc`: a header of 13 hexadecimal numbers, the name, the content, each padded to 4 bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def add(self, name: str, content: bytes, mode: int) -> None:
        self._entries += 1
        path = name.encode() + b"\0"
        inode, owner, links, time, device = self._entries, (0, 0), 1, 0, (0, 0, 0, 0)
        header = "070701" + "".join(f"{n:08x}" for n in (inode, mode, *owner, links, time, len(content), *device, len(path), 0))
        self._parts += [_padded(header.encode() + path), _padded(content)]

    def finish(self) -> bytes:
        self.add("TRAILER!!!", b"", 0)
        return b"".join(self._parts)


def _padded(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)
