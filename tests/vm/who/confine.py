# SPDX-License-Identifier: Apache-2.0
"""What the kernel offers to make a process see and do less: namespaces, mounts, ids, seccomp."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import tempfile
from pathlib import Path

NEWNS, NEWCGROUP, NEWUSER, NEWPID = 0x20000, 0x2000000, 0x10000000, 0x20000000
RDONLY, NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = 442, -100, 0x8000, 1
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    known = [arg.encode() if isinstance(arg, str) else ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    if getattr(_libc, name)(*known) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{args}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _call("unshare", flags)


def join(pid: int, kind: str, flag: int) -> None:
    """Enter a namespace of another process's; a pid namespace is entered by one's children."""
    fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    _call("setns", fd, flag)
    os.close(fd)


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    _call("mount", source, target, kind, flags, options)


def mount_again(kind: str, target: str, options: str | None) -> None:
    """Mount what is mounted there already, read-only; the kernel refuses that at the very same place."""
    elsewhere = tempfile.mkdtemp(dir="/tmp")
    mount(kind, elsewhere, kind, RDONLY | NOSUID | NODEV | NOEXEC, options)
    mount(elsewhere, target, None, BIND)
    _call("umount2", elsewhere, _MNT_DETACH)
    os.rmdir(elsewhere)


def own_mounts() -> None:
    """From here on, what is mounted is for this process and its children alone."""
    unshare(NEWNS)
    mount(None, "/", None, REC | PRIVATE)


def set_read_only(path: str, *, on: bool, below: bool) -> None:
    """Of a mount, and of all that is mounted below it."""
    bits = struct.pack("QQQQ", _ATTR_RDONLY if on else 0, 0 if on else _ATTR_RDONLY, 0, 0)
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE if below else 0, bits, len(bits))


def cover(directory: str, keep: list[str], options: str) -> None:
    """Put an empty folder in memory over another, in which only these of its entries can be seen."""
    kept = {name: os.open(f"{directory}/{name}", os.O_PATH | os.O_CLOEXEC) for name in keep}
    mount("tmpfs", directory, "tmpfs", NOSUID | NODEV, options)
    for name, fd in kept.items():
        here = f"{directory}/{name}"
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            os.mkdir(here, 0o755)
        else:
            Path(here).touch()
        mount(f"/proc/self/fd/{fd}", here, None, BIND | REC)
        os.close(fd)


def die_with_parent() -> None:
    """To be said again after each change of ids."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    die_with_parent()


def no_new_privileges() -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def limit_locked(size: int) -> None:
    """How much memory may be locked."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))


def deny_perf_events() -> None:
    """perf_event_open answers EPERM, as by the profiles of container runtimes."""
    machine = platform.machine()
    if machine not in _PERF_EVENT_OPEN:
        raise SystemExit(f"tests/vm/as: the number of perf_event_open on {machine} is not known; add it to {__file__}")
    load_number, if_equal, answer = 0x20, 0x15, 0x06
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    steps = [(load_number, 0, 0, 0), (if_equal, 0, 1, _PERF_EVENT_OPEN[machine]), (answer, 0, 0, refuse), (answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)
    result = _libc.syscall(_PERF_EVENT_OPEN[machine], None, 0, -1, -1, 0)
    if (result, ctypes.get_errno()) != (-1, errno.EPERM):  # where it is not denied, it fails for want of an address
        raise SystemExit("tests/vm/as: perf_event_open was to be denied")


def map_ids(pid: int, first: int) -> None:
    """Of a process that made a user namespace: its 65,536 ids are ours from `first` on."""
    Path(f"/proc/{pid}/uid_map").write_text(f"0 {first} 65536")
    Path(f"/proc/{pid}/gid_map").write_text(f"0 {first} 65536")
