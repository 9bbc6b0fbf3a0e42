# SPDX-License-Identifier: Apache-2.0
"""Waits for pages that were there before, and a machine that is short of memory as a whole."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import facts
import pytest
from actor import MIB
from pressure import LIMIT, causes, keyed, loaded, stalled_us, total_ns, watching, whole_machine

from pymemcg.bench.swap import swap_header

pytestmark = pytest.mark.live


@pytest.fixture
def make_file(scratch):
    def make(mib: int) -> str:
        path = scratch / f"data-{mib}"
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # its pages would be this process's group's
        return str(path)

    return make


@pytest.fixture
def slow_swap(swap, scratch) -> Iterator[None]:
    """Something to swap to that one waits for: a disk, where the machine is ours to do so."""
    if not (whole_machine() and facts.is_root()):
        yield
        return
    size, path = 64 * MIB, scratch / "swap"
    with path.open("wb") as file:
        file.write(swap_header(size, os.sysconf("SC_PAGESIZE")).ljust(size, b"\0"))
        os.fsync(file.fileno())
    libc, first = ctypes.CDLL(None, use_errno=True), 0x8000 | 0x7FFF  # SWAP_FLAG_PREFER and the highest priority
    assert libc.swapon(os.fsencode(path), first) == 0, os.strerror(ctypes.get_errno())
    yield
    assert libc.swapoff(os.fsencode(path)) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("cause", ["swap", pytest.param("thrash", marks=pytest.mark.kernel)])
def test_what_was_dropped_is_waited_for(cause, slow_swap, make_file, make_group, make_actor):
    """More is in use than the group may hold: tracepoints tell of the reclaim, and only PSI of the wait for what was dropped.

    The kernel counts that wait where a page comes back that had been in use among those that are (workingset_refault() in
    mm/workingset.c), so not for what an administrator has dropped all at once.
    """
    group = make_group(cause, limit_bytes=LIMIT)
    actor = loaded(make_actor(group))
    if cause == "swap":
        actor.do("it = region(24)\nfill(it, 0, 24)\ntouch = lambda at: it[0][at]")
    else:
        actor.do(f"it = os.open({make_file(24)!r}, os.O_RDONLY); os.posix_fadvise(it, 0, 0, os.POSIX_FADV_RANDOM)")
        actor.do("touch = lambda at: (os.pread(it, 9, at), os.pread(it, 9, at))")
    actor.do("for _ in range(3): some(touch, 24)")
    with watching(group, actor.pid) as watch:
        before, pressure = refaults(group)[cause], stalled_us(group)
        begin, end, _took = actor.do("some(touch, 24)")
        watch.settle(actor)
        pressure = stalled_us(group) - pressure
        found, by_psi = watch.stalls(), watch.stalls("psi") if watch.works("psi") else None
    assert refaults(group)[cause] - before > 500
    if by_psi is None:
        assert causes(found).keys() == {"limit"}, "only PSI tells of such waits"
        return
    assert causes(by_psi)["limit"] >= 0.8 * sum(causes(by_psi).values()), "that the limit was hit is all that counters say"
    assert sum(causes(by_psi).values()) <= end - begin
    if watch.truth is None:
        return
    took = causes(found)
    assert took["limit"] / 1000 <= 1.1 * watch.truth.total_us
    assert took["limit"] + took.get(cause, 0) >= 0.9 * sum(took.values()), took
    waits = [stall for stall in found if stall.cause == cause]
    assert not any(stall.tids for stall in waits), "nobody tells who waited"
    waited_us = pressure - watch.truth.total_us
    hardly = 2000 if cause == "swap" else 0
    assert total_ns(waits, lambda stall: stall.stall_lo_ns) / 1000 < 1.3 * max(waited_us, 0) + hardly
    if cause == "swap" and waited_us < 0.2 * pressure and not whole_machine():
        return  # to read from memory may be no wait to this kernel
    assert waited_us > 2000
    assert total_ns(waits, lambda stall: stall.stall_hi_ns) / 1000 > 0.3 * waited_us, "waiting for a CPU is taken off"


def refaults(group) -> dict[str, int]:
    """By the cause that they are."""
    stat = keyed(f"{group.directory}/memory.stat")
    both = {"thrash": "workingset_refault_file", "swap": "workingset_refault_anon"}
    return {cause: stat.get(key, stat.get("workingset_refault", 0)) for cause, key in both.items()}


@pytest.fixture
def small_machine(make_group, make_actor) -> Iterator[None]:
    """Three hundred MiB of the machine's memory are free, and the rest is out of reach."""
    if not whole_machine():
        pytest.skip("the machine is not the test's own")
    if not facts.is_root():
        pytest.skip("only root may take memory away from the machine")
    knobs = {name: Path("/proc/sys/vm", name) for name in ("nr_hugepages", "min_free_kbytes", "watermark_scale_factor")}
    kept = {name: path.read_text() for name, path in knobs.items() if path.exists()}
    Path("/proc/sys/vm/drop_caches").write_text("1")
    too_much_mib = max(0, keyed("/proc/meminfo")["MemFree:"] // 1024 - 300)
    if "nr_hugepages" in kept:
        knobs["nr_hugepages"].write_text(str(too_much_mib // 2))
    else:  # a process then holds it
        holder = make_actor(make_group("holder"))  # where no limit is
        holder.do("open('/proc/self/oom_score_adj', 'w').write('-1000')")
        holder.do(f"import ctypes, mmap; held = mmap.mmap(-1, {max(1, too_much_mib)} << 20)")
        assert holder.do("ctypes.CDLL(None).mlockall(1)") == 0
    yield
    for name, text in kept.items():
        knobs[name].write_text(text)


def watermarks(*, min_mib: int, gap: int) -> None:
    """Below `min` who allocates has to reclaim; kswapd begins `gap` / 10000 of memory above that."""
    Path("/proc/sys/vm/watermark_scale_factor").write_text(str(gap))
    Path("/proc/sys/vm/min_free_kbytes").write_text(str(min_mib << 10))


def node() -> dict[str, int]:
    """What the whole machine has done so far."""
    now = keyed("/proc/vmstat")
    stalls = sum(now[key] for key in now if key.startswith("allocstall"))
    return {"stalls": stalls, "kswapd": now["pgsteal_kswapd"], "direct": now["pgsteal_direct"]}


def reads_much(make_group, make_actor, scratch) -> None:
    """Page cache that belongs to somebody else fills all that is free but 60 MiB."""
    path = scratch / "holes"
    with path.open("wb") as file:
        file.truncate((keyed("/proc/meminfo")["MemFree:"] << 10) - 60 * MIB)
    reader = make_actor(make_group("reader"))
    reader.do(f"import shutil; shutil.copyfile({str(path)!r}, '/dev/null')")


@pytest.mark.kernel
def test_background_reclaim_is_no_stall(small_machine, scratch, make_group, make_actor):
    group = make_group("beside")
    actor = loaded(make_actor(group))
    reads_much(make_group, make_actor, scratch)
    watermarks(min_mib=2, gap=300)
    with watching(group, actor.pid) as watch:
        before = node()
        actor.do("it = region(100)")
        for first in range(0, 100, 5):  # so slowly that kswapd has free pages when they are wanted
            actor.do(f"fill(it, {first}, {first + 5})")
            time.sleep(0.1)
        watch.settle(actor)
        after = node()
        found = {name: watch.harmful(name) for name in ("auto", "trace", "psi") if name == "auto" or watch.works(name)}
    assert after["kswapd"] - before["kswapd"] > 1000
    assert after["stalls"] == before["stalls"]
    assert found == {name: [] for name in found}


@pytest.mark.kernel
def test_direct_reclaim_of_the_whole_machine(small_machine, scratch, make_group, make_actor):
    """No limit anywhere: the machine is short, and who allocates has to reclaim, since kswapd is kept from running."""
    group = make_group("short")
    actor = loaded(make_actor(group))
    reads_much(make_group, make_actor, scratch)
    background = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and comm(pid).startswith("kswapd")]
    watermarks(min_mib=20, gap=1)
    with watching(group, actor.pid) as watch:
        before = node()
        for pid in background:
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        try:
            begin, end, _took = actor.do("fill(region(90), 0, 90)")
        finally:
            for pid in background:
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
        watch.settle(actor)
        after = node()
        found = {name: watch.stalls(name) for name in ("auto", "trace", "psi") if name == "auto" or watch.works(name)}
    assert after["stalls"] > before["stalls"]
    if found.keys() == {"auto"}:
        assert found["auto"] == [], "no counter tells whom it held, and no limit was hit"
        return
    for name, told in found.items():
        # On one CPU PSI cannot tell reclaim from waiting for kswapd's turns: what it tells may be from 0 on.
        held = (lambda stall: stall.stall_hi_ns) if name == "psi" else (lambda stall: stall.stall_ns)
        assert total_ns([stall for stall in told if stall.cause == "global"], held) >= 0.8 * total_ns(told, held) > 0
        assert causes(told)["global"] <= end - begin
    if watch.truth is not None:
        exact = total_ns(found["trace"], lambda stall: stall.stall_hi_ns) / 1000
        assert exact == pytest.approx(watch.truth.total_us, rel=0.1, abs=1000)
        assert any(not stall.harmless for stall in found["trace"])
        assert {tid for stall in found["trace"] for tid in stall.tids} == {actor.pid}


def comm(pid: str) -> str:
    try:
        return Path("/proc", pid, "comm").read_text()
    except OSError:
        return ""
