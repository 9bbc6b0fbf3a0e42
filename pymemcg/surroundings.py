# SPDX-License-Identifier: Apache-2.0
"""What this machine and this process allow, apart from any group: privileges, clocks, sandboxes.

Everything is read once and nothing is kept, started or changed.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pymemcg import tracepoints
from pymemcg.errors import NotSupported, SourceError
from pymemcg.mounts import Entry, parse_entries, read_text

State = Literal["yes", "partly", "no", "info"]

_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; Python has no name for it
_CAPABILITIES = {"CAP_IPC_LOCK": 14, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24, "CAP_PERFMON": 38}
_SECCOMP = {"0": "none", "1": "strict", "2": "a filter"}
# gVisor said 4.4.0 of this date until 2026, and says 4.19.0-gvisor since (google/gvisor#13016).
_GVISOR_BUILD = "#1 SMP Sun Jan 10 15:06:54 PST 2016"
_GVISOR_RELEASE = "-gvisor"
_KATA_SHARE = "kataShared"  # the source of the file system in which Kata hands a container to its virtual machine


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of the thing.
        state: "yes", "partly" or "no": whether it is there; "info" where that is no question.
        says: What was found, in words.
        needs: What would have to be so for it to be there, or None.
        facts: What was found, as plain values with their unit in the name.
    """

    name: str
    state: State
    says: str
    needs: str | None = None
    facts: dict[str, Any] = field(default_factory=dict, hash=False)


def check_surroundings() -> Iterator[Check]:
    """Look at everything here that does not depend on the group."""
    yield _clock()
    status = _status()
    yield _privileges(status)
    yield _seccomp(status)
    yield from _tracing(status)
    yield _sandbox()


def jiffy_ns() -> int:
    """The kernel's tick, which is PSI's grain: 1 / CONFIG_HZ.

    sysconf's SC_CLK_TCK is USER_HZ, always 100.
    """
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)


def _clock() -> Check:
    jiffy = jiffy_ns()
    says = f"{1e9 / jiffy:.0f}: a jiffy, PSI's grain, is {jiffy / 1e6:g} ms"
    return Check("HZ", "info", says, facts={"jiffy_ns": jiffy})


def _status() -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in read_text("/proc/self/status").splitlines() if ":\t" in line)


def _held(status: dict[str, str]) -> dict[str, bool]:
    effective = int(status.get("CapEff", "0"), 16)
    return {name: bool(effective >> bit & 1) for name, bit in _CAPABILITIES.items()}


def _initial_user_namespace() -> bool:
    try:
        return read_text("/proc/self/uid_map").split() == ["0", "0", "4294967295"]
    except SourceError:
        return True  # a kernel without user namespaces


def _privileges(status: dict[str, str]) -> Check:
    held, initial = _held(status), _initial_user_namespace()
    names = [name for name, has in held.items() if has]
    says = f"uid {os.geteuid()}, of these capabilities: {', '.join(names) or 'none'}"
    if names and not initial:
        says += "; in a user namespace, where they do not hold against the kernel"
    facts = {"uid": os.geteuid(), "capabilities": held, "initial_user_namespace": initial}
    return Check("privileges", "info", f"{says} (sampling needs none)", facts=facts)


def _seccomp(status: dict[str, str]) -> Check:
    mode = status.get("Seccomp", "").strip()
    says = _SECCOMP.get(mode, "not known")
    if mode == "2":
        says += "; sampling needs nothing that container runtimes forbid, perf_event_open they usually do"
    return Check("seccomp", "info", says, facts={"seccomp_mode": int(mode) if mode.isdigit() else None})


def _tracing(status: dict[str, str]) -> Iterator[Check]:
    ids: dict[str, int] | None = None
    try:
        ids = tracepoints.event_ids()
    except NotSupported as error:
        yield Check("tracefs", "no", str(error.args[0]), error.hint, {"event_ids": None})
    else:
        variable = tracepoints.EVENT_IDS_VARIABLE
        source = f"given by {variable}" if variable in os.environ else "readable"
        says = f"the ids of the reclaim events are {source}; who cannot read them may be given {variable} (--json has it)"
        line = f"{variable}=" + ",".join(f"{name}={ident}" for name, ident in ids.items())
        yield Check("tracefs", "yes", says, facts={"event_ids": ids, "environment": line})
    yield _perf_events(ids, _held(status))


def _perf_events(ids: dict[str, int] | None, held: dict[str, bool]) -> Check:
    level = _paranoid()
    if level is None:
        says = "the kernel has none (/proc/sys/kernel/perf_event_paranoid is absent)"
        return Check("perf events", "no", says, facts={"perf_event_paranoid": level, "allowed": False})
    # At -1 anybody may; exclude_kernel, which more may, counts reclaim as 0 for ever.
    allowed = level < 0 or (_initial_user_namespace() and (held["CAP_PERFMON"] or held["CAP_SYS_ADMIN"]))
    problem = None if allowed else f"perf_event_paranoid is {level}"
    if ids is not None:  # then there is no need to guess
        problem = tracepoints.probe(ids)
    facts = {"perf_event_paranoid": level, "allowed": problem is None}
    if problem is None:
        return Check("perf events", "yes", "exact times of reclaim, by thread (evidence trace), can be had", facts=facts)
    says = f"{problem}; only exact times of reclaim, by thread (evidence trace), need them"
    return Check(
        "perf events", "no", says, "CAP_PERFMON (or root), and a seccomp profile that lets perf_event_open pass", facts
    )


def _paranoid() -> int | None:
    try:
        return int(read_text("/proc/sys/kernel/perf_event_paranoid"))
    except (SourceError, ValueError):
        return None


def _mounts() -> list[Entry]:
    """Each mount that can be seen."""
    try:
        return parse_entries(read_text("/proc/self/mountinfo"))
    except SourceError:
        return []


def _sandbox() -> Check:
    kernel = os.uname()
    if kernel.release.endswith(_GVISOR_RELEASE) or kernel.version == _GVISOR_BUILD:
        says = "gVisor: this is not Linux, and its files under /proc and /sys/fs/cgroup are of its own making"
        needs = "run the sampler on the host (pymemcg watch container:ID), where the real group is"
        return Check("sandbox", "partly", says, needs, {"sandbox": "gvisor"})
    if any(mount.source == _KATA_SHARE for mount in _mounts()):
        says = "Kata: a virtual machine of its own; its groups and PSI are real, but the host's limits are out of sight"
        return Check("sandbox", "info", says, facts={"sandbox": "kata"})
    says = "no sign of gVisor or Kata (a sandbox that hides well is not noticed)"
    return Check("sandbox", "info", says, facts={"sandbox": None})


def memlock_bytes() -> int | None:
    """How much this process may lock into memory; None = no limit, or CAP_IPC_LOCK."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if soft == resource.RLIM_INFINITY or (_held(_status())["CAP_IPC_LOCK"] and _initial_user_namespace()):
        return None
    return soft
