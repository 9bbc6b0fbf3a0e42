# SPDX-License-Identifier: Apache-2.0
"""Which tracepoints of reclaim there are, whether they may be opened, and how threads of a target are told from others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from pymemcg._ffi import ffi, lib
from pymemcg.errors import MemcgError, NotSupported, SourceError
from pymemcg.mounts import CgroupPath, parse_memberships, parse_mounts, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymemcg.cgroup import Target

TRACEFS: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
EVENT_IDS_VARIABLE: Final = "PYMEMCG_EVENT_IDS"
"""Environment variable with the ids of tracepoints for processes that cannot read tracefs: NAME=ID,NAME=ID,…"""

# In the order of enum memcg_tracepoint. The first two are what evidence `trace` cannot do without.
_EVENTS: Final = (
    "vmscan/mm_vmscan_memcg_reclaim_begin",
    "vmscan/mm_vmscan_memcg_reclaim_end",
    "vmscan/mm_vmscan_direct_reclaim_begin",
    "vmscan/mm_vmscan_direct_reclaim_end",
    "compaction/mm_compaction_begin",
    "compaction/mm_compaction_end",
    "vmscan/mm_vmscan_throttled",
)
NAMES: Final = tuple(event.split("/")[1] for event in _EVENTS)
"""The tracepoints, as `event_ids` names them; mm_compaction_* and mm_vmscan_throttled (from 5.17 on) may be missing."""
_NEEDED: Final = NAMES[:2]


def _file_systems() -> list[str]:
    """What the kernel can mount; that it can mount tracefs, where it does not say."""
    try:
        return read_text("/proc/filesystems").split()
    except SourceError:
        return ["tracefs"]


def event_ids() -> dict[str, int]:
    """The tracepoints' numbers: from the environment variable PYMEMCG_EVENT_IDS where it is set, else from tracefs.

    They are the same for all processes until the next boot (of a module's tracepoint until it is loaded anew; these are none).

    Returns:
        Name to id, of those that there are.

    Raises:
        NotSupported: They cannot be had here; the message says why and what would help.
    """
    given = os.environ.get(EVENT_IDS_VARIABLE)
    if given is not None:
        return parse_event_ids(given)
    if "tracefs" not in _file_systems():
        raise NotSupported("this kernel has no tracepoints", hint="a kernel with CONFIG_FTRACE")
    problem = f"tracefs is not mounted at {TRACEFS[0]}"
    for root in TRACEFS:
        if not os.path.isdir(f"{root}/events/vmscan"):
            if os.path.isdir(root) and not os.access(root, os.X_OK):
                problem = f"{root} can be read by root alone"
            continue
        found, failed = {}, None
        for name, event in zip(NAMES, _EVENTS, strict=True):
            try:
                found[name] = int(read_text(f"{root}/events/{event}/id"))
            except (SourceError, ValueError) as error:
                failed = failed or error
        if all(name in found for name in _NEEDED):
            return found
        problem = f"the ids of the reclaim events cannot be read: {failed}"
    raise NotSupported(problem, hint=f"mount -t tracefs tracefs {TRACEFS[0]} as root, or hand in event_ids from where it is")


def parse_event_ids(text: str) -> dict[str, int]:
    """Parse NAME=ID,NAME=ID,…; see `check_event_ids`.

    Raises:
        NotSupported: It is not of that form.
    """
    pairs = [pair.partition("=") for pair in text.replace(" ", "").split(",") if pair]
    if not all(ident.isascii() and ident.isdigit() for _, _, ident in pairs):
        raise NotSupported(f"{text!r} are no event ids: expected NAME=ID,NAME=ID,… as `pymemcg doctor` prints them")
    return check_event_ids({name: int(ident) for name, _, ident in pairs})


def check_event_ids(ids: Mapping[str, int]) -> dict[str, int]:
    """Refuse ids that are none of ours.

    Raises:
        NotSupported: A name is not one of `NAMES`, one that is needed is missing, or an id is no positive 16-bit number.
    """
    wrong = [name for name in ids if name not in NAMES]
    if wrong:
        raise NotSupported(f"{wrong[0]!r} is none of the tracepoints that are used: {', '.join(NAMES)}")
    missing = [name for name in _NEEDED if name not in ids]
    if missing:
        raise NotSupported(
            f"the id of {missing[0]} is missing", hint="`pymemcg doctor --json` prints them where tracefs can be read"
        )
    for name, ident in ids.items():
        if not 0 < ident < 1 << 16:
            raise NotSupported(f"{ident} is no id of a tracepoint ({name}): expected 1 to 65535")
    return dict(ids)


def probe(ids: Mapping[str, int]) -> str | None:
    """Whether these tracepoints may be opened for the whole host; None, or why not and what would help."""
    rc = lib.memcg_trace_probe(ffi.new("uint64_t[]", in_order(ids)))
    if rc == 0:
        return None
    if -rc in (1, 13):  # EPERM, EACCES
        return "perf_event_open is denied: it needs CAP_PERFMON (or root) and a seccomp profile that lets it pass"
    if -rc in (2, 22):  # ENOENT, EINVAL
        return "the kernel knows no tracepoints by these ids: they are of another boot or machine"
    return f"perf_event_open: {os.strerror(-rc)}"


def in_order(ids: Mapping[str, int]) -> list[int]:
    """In the order of enum memcg_tracepoint, 0 where there is none."""
    both = [(begin, begin.replace("_begin", "_end")) for begin in NAMES]
    known = {name for pair in both if all(name in ids for name in pair) for name in pair}  # a begin is nothing without its end
    return [ids[name] if name in known else 0 for name in NAMES]


def membership(target: Target) -> tuple[int, str | None]:
    """How threads of the target are known.

    Returns:
        (id of its group in cgroup2, else 0: where PSI speaks of the group, that one was found to hold the same processes; the
        memory group's path as /proc/TID/cgroup shows it here, or None where that is not known)
    """
    ident = 0
    if target.cgroup2_directory is not None and target.pressure_scope == "group" and not _perf_on_v1():
        ident = os.stat(target.cgroup2_directory).st_ino
    return ident, _memory_path(target) if foreign_proc() is None else None


def foreign_proc() -> str | None:
    """Why threads cannot be looked up by their numbers in /proc, or None."""
    seen_as = os.readlink("/proc/self")
    if seen_as == str(os.getpid()):
        return None
    return (
        f"/proc belongs to another pid namespace (this process, {os.getpid()}, is {seen_as} there): "
        "the numbers of processes and threads mean others in it"
    )


def _perf_on_v1() -> bool:
    """Whether events carry the id of a group in a v1 hierarchy: those are small numbers, which cgroup2's may equal."""
    try:
        return any(m.version == 1 and "perf_event" in m.options for m in parse_mounts(read_text("/proc/self/mountinfo")))
    except MemcgError:
        return True


def _memory_path(target: Target) -> str | None:
    if target.pid is not None:
        try:
            groups = parse_memberships(read_text(f"/proc/{target.pid}/cgroup"))
        except MemcgError:
            return None
        path = groups.get("memory" if target.version == 1 else "")
        return None if path is None else str(path)
    return _path_of(target.directory, target.version)


def _path_of(directory: str, version: int) -> str | None:
    """A group's path from its directory, by the mount below which it lies."""
    try:
        mounts = parse_mounts(read_text("/proc/self/mountinfo"))
    except MemcgError:
        return None
    real = os.path.realpath(directory)
    above = [m for m in mounts if m.version == version and f"{real}/".startswith(f"{m.directory}/")]
    if not above:
        return None
    mount = max(above, key=lambda m: len(m.directory))
    if mount.root.up:  # names that the namespace hides
        return None
    names = [name for name in real[len(mount.directory) :].split("/") if name]
    return str(CgroupPath(0, (*mount.root.names, *names)))
