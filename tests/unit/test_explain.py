# SPDX-License-Identifier: Apache-2.0
"""Explanations of captured kernels: figures that add up, formulas against the kernel's own results, verdicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pymemcg.explain import VERDICTS, Meanwhile, explain, opened, take
from pymemcg.explain._snapshot import Group, Neighbour, Snapshot, StallsSeen

DATA = Path(__file__).resolve().parents[1] / "data"
KERNELS = sorted(path.name for path in DATA.iterdir() if (path / "proc").is_dir())
MIB = 1 << 20


def snapshot_of(kernel: str, **options: bool) -> Snapshot:
    with opened(str(DATA / kernel)) as tree:
        return take(tree, **options)


@pytest.fixture(params=KERNELS)
def snapshot(request) -> Snapshot:
    return snapshot_of(request.param, pss=True)


# ---- Figures -------------------------------------------------------------------------------------------------------


def test_the_parts_add_up_to_usage(snapshot):
    told = explain(snapshot).makeup
    assert sum(part.part_bytes for part in told.parts if part.within is None) == told.usage_bytes
    if snapshot.version == 2:  # which counts the kernel's memory, too: nothing but batching is left
        assert told.adds_up is True
        assert abs(told.rest_bytes) <= told.batching_bytes
    else:
        assert told.adds_up is None
        assert 0 <= told.rest_bytes < 2 * MIB  # page tables, slab and the stock of CPUs of one small process


def test_parts_of_parts_are_no_larger_than_these(snapshot):
    told = explain(snapshot).makeup
    whole = {part.name: part.part_bytes for part in told.parts if part.within is None}
    shmem = whole["shmem"]
    for part in told.parts:
        if part.within == "page cache":
            assert part.part_bytes <= whole["page cache"] + (shmem if part.name == "file_mapped" else 0)
        elif part.within is not None:
            assert part.part_bytes <= whole[part.within]


def test_what_can_and_cannot_be_reclaimed_is_all_of_it(snapshot):
    told = explain(snapshot).makeup
    kinds = (told.at_once_bytes, told.after_writeback_bytes, told.to_swap_bytes, told.unknown_bytes, told.never_bytes)
    assert None not in kinds
    assert sum(kinds) == pytest.approx(told.usage_bytes, abs=told.batching_bytes)


def v1(name: str, *, anon: int, cache: int, usage: int, **others: int) -> Snapshot:
    """A group of a v1 hierarchy that has no limit; in MiB."""
    taken = snapshot_of("6.1-v1")
    figures = {"anon": anon, "inactive_anon": anon, "file": cache, "inactive_file": cache}
    zeros = dict.fromkeys(taken.group.stat, 0)
    group = replace(
        taken.group,
        name=name,
        usage_bytes=usage * MIB,
        limits={"max": None},
        stat=zeros | {key: count * MIB for key, count in figures.items()},
        others={key: count * MIB for key, count in others.items()},
    )
    return replace(taken, levels=(group,))


def test_usage_of_v1s_root_does_not_count_the_kernels_memory():
    told = explain(v1("/", anon=100, cache=200, usage=300, kmem=54)).makeup
    assert "kernel" not in {part.name for part in told.parts}
    assert (told.rest_bytes, told.adds_up, told.unknown_bytes, told.never_bytes) == (0, True, 0, 0)
    says = " ".join(told.says)
    assert "for the groups below (54.0 MiB) is not in it" in says
    assert "it moved" not in says


@pytest.mark.parametrize(("name", "usage"), [("/", 354), ("/pod", 354), ("/pod", 300)])
def test_other_groups_usage_does(name, usage):
    """A cgroup namespace shows a group as "/", too; and what is below the root is not the root, however it was read."""
    told = explain(v1(name, anon=100, cache=200, usage=usage, kmem=54)).makeup
    parts = {part.name: part.part_bytes for part in told.parts}
    assert (parts["kernel"], told.rest_bytes) == (54 * MIB, (usage - 354) * MIB)
    assert "is not in it" not in " ".join(told.says)


def test_v1_does_not_tell_how_much_of_the_kernels_memory_could_go():
    told = explain(v1("/pod", anon=30, cache=10, usage=100, kmem=58)).makeup
    assert (told.unknown_bytes, told.never_bytes) == (58 * MIB, 2 * MIB)
    says = " ".join(told.says)
    assert "58.0 MiB is the kernel's own memory for it: v1 does not tell how much of that is slab" in says
    assert "2.0 MiB nothing can take: locked pages" in says
    told = explain(v1("/pod", anon=30, cache=10, usage=100)).makeup
    assert (told.unknown_bytes, told.never_bytes) == (60 * MIB, 0)
    assert "60.0 MiB is mostly the kernel's own memory" in " ".join(told.says)


def test_v2_tells_it():
    assert explain(changed(kernel=8)).makeup.unknown_bytes == 0


def test_groups_are_what_resolve_finds(snapshot):
    assert [group.name for group in snapshot.levels] == ["/pmc-parent/pmc-child", "/pmc-parent", "/"]
    assert snapshot.group.limit_bytes == 64 * MIB
    assert snapshot.group.events["oom_kill"] == 1
    assert [one.name for one in snapshot.processes] == ["python3"]


def test_the_kernels_oom_score_is_our_badness(snapshot):
    """/proc/PID/oom_score is ``(1000 + 1000 × badness / total) × 2 / 3``, total being the machine's memory and swap."""
    [process] = snapshot.processes
    [candidate] = explain(snapshot).outcome.candidates
    info, page = snapshot.node.meminfo, snapshot.node.page_bytes
    total = (info["MemTotal"] + info["SwapTotal"]) // page
    assert process.oom_score_adj == 0
    expected = (1000 + candidate.badness_bytes // page * 1000 // total) * 2 // 3
    assert abs(process.oom_score - expected) <= 1  # MemTotal is rounded, and counters were read one after the other


def test_oom_score_adj_is_in_thousandths_of_the_limit_and_swap(snapshot):
    [process] = snapshot.processes
    plain, worse, never = (
        explain(replace(snapshot, processes=(replace(process, oom_score_adj=adj),))).outcome.candidates[0]
        for adj in (0, 500, -1000)
    )
    swap = snapshot.node.meminfo["SwapTotal"]
    assert worse.badness_bytes - plain.badness_bytes == (64 * MIB + swap) * 500 // 1000
    assert (never.badness_bytes, never.never, worse.never) == (None, True, False)


def test_who_is_never_killed_is_ranked_last(snapshot):
    [process] = snapshot.processes
    others = [replace(process, pid=pid, oom_score_adj=adj) for pid, adj in ((1, -1000), (2, -500), (3, 0), (4, 1000))]
    ranked = explain(replace(snapshot, processes=tuple(others))).outcome.candidates
    assert [one.pid for one in ranked] == [4, 3, 2, 1]


@pytest.mark.parametrize("lost", ["VmSwap", "VmPTE", "oom_score_adj"])
def test_a_rank_needs_all_its_figures(snapshot, lost):
    [process] = snapshot.processes
    status = {key: count for key, count in process.status.items() if key != lost}
    poorer = replace(process, status=status, **({"oom_score_adj": None} if lost == "oom_score_adj" else {}))
    [whole] = explain(snapshot).outcome.candidates
    [one] = explain(replace(snapshot, processes=(poorer,))).outcome.candidates
    absent = {"VmSwap": one.swap_bytes, "VmPTE": one.pgtables_bytes, "oom_score_adj": one.oom_score_adj}
    assert {name for name, figure in absent.items() if figure is None} == {lost}
    assert (whole.never, one.never) == (False, None if lost == "oom_score_adj" else False)
    assert (one.badness_bytes, one.rss_bytes) == (None, whole.rss_bytes)


def test_a_share_of_what_is_not_known_is_no_rank(snapshot):
    [process] = snapshot.processes
    node = replace(snapshot.node, meminfo={})
    plain, worse = (
        explain(replace(snapshot, node=node, processes=(replace(process, oom_score_adj=adj),))).outcome.candidates[0]
        for adj in (0, 500)
    )
    assert plain.badness_bytes is not None
    assert (worse.badness_bytes, worse.never) == (None, False)


def test_it_is_json(snapshot):
    assert json.loads(json.dumps(explain(snapshot).to_dict()))["verdict"]["name"] in VERDICTS


# ---- Limits --------------------------------------------------------------------------------------------------------


def test_the_first_limit_is_the_one_with_the_least_room(snapshot):
    told = explain(snapshot).edge
    assert (told.first.group, told.first.kind) == ("/pmc-parent/pmc-child", "max")
    assert told.first.left_bytes == 64 * MIB - snapshot.group.usage_bytes
    parent = replace(snapshot.levels[1], usage_bytes=100 * MIB, limits={"max": 100 * MIB + 4096})
    told = explain(replace(snapshot, levels=(snapshot.group, parent, *snapshot.levels[2:]))).edge
    assert (told.first.group, told.first.left_bytes) == ("/pmc-parent", 4096)


def test_a_protection_is_no_limit(snapshot):
    group = replace(snapshot.group, limits={"max": None, "min": 32 * MIB, "low": 0})
    told = explain(replace(snapshot, levels=(group,))).edge
    assert told.first is None
    assert [limit.kind for limit in told.limits] == ["min"]  # a protection of 0 is none


def test_time_to_a_limit_is_a_straight_line(snapshot):
    group = replace(snapshot.group, usage_bytes=32 * MIB)
    told = explain(replace(snapshot, levels=(group,), meanwhile=meanwhile(growth_bytes_per_s=1.0 * MIB))).edge
    assert told.first.seconds == pytest.approx(32)


# ---- Verdicts ------------------------------------------------------------------------------------------------------


def meanwhile(**changes: object) -> Meanwhile:
    calm = Meanwhile(
        seconds=3.0,
        growth_bytes_per_s=0.0,
        anon_growth_bytes_per_s=0.0,
        anon_grows=False,
        most_bytes=None,
        most_dirty_bytes=0,
        events={},
        stat={},
        vmstat={},
        stalls=StallsSeen(0, 0, None, {}, 0, ("psi",), 0),
        why_no_stalls=None,
    )
    return replace(calm, **changes)


STALLS = StallsSeen(4, 40_000_000, 12_000_000, {"limit": 4}, 0, ("psi",), 0)


def calm() -> Snapshot:
    """Of 6.12: a group with 10 of its 64 MiB in use, on a machine with room, without swap."""
    taken = snapshot_of("6.12-v2")
    node = replace(taken.node, meminfo=dict(taken.node.meminfo) | {"SwapTotal": 0, "SwapFree": 0}, pressure={})
    return replace(
        taken,
        levels=(of(taken.group, anon=6, inactive_file=4), *taken.levels[1:]),
        node=node,
        meanwhile=meanwhile(),
        pressure={},
    )


def of(group: Group, **mib: int) -> Group:
    """A group of these parts, in MiB."""
    zeros = dict.fromkeys(("anon", "shmem", "kernel", "inactive_file", "active_file", "file_dirty", "slab_reclaimable"), 0)
    parts = zeros | {name: count * MIB for name, count in mib.items()}
    stat = dict(group.stat) | parts
    stat["file"] = parts["inactive_file"] + parts["active_file"] + parts["shmem"]
    stat["inactive_anon"], stat["active_anon"] = parts["anon"] + parts["shmem"], 0
    usage = stat["anon"] + stat["file"] + stat["kernel"]
    return replace(group, usage_bytes=usage, stat=stat, events=dict(group.events) | {"oom_kill": 0}, peak_bytes=None)


def with_group(snapshot: Snapshot, group: Group, **changes: object) -> Snapshot:
    return replace(snapshot, levels=(group, *snapshot.levels[1:]), **changes)


def changed(**changes: object) -> Snapshot:
    """The calm one with parts (in MiB), `seen` (of `meanwhile`), `others` of the group, or fields of the snapshot changed."""
    taken = calm()
    seen, others = changes.pop("seen", {}), changes.pop("others", {})
    limits, node = changes.pop("limits", {}), changes.pop("node", {})
    parts = {name: changes.pop(name) for name in list(changes) if isinstance(changes[name], int)}
    group = of(taken.group, **parts) if parts else taken.group
    group = replace(group, others=dict(group.others) | others, limits=dict(group.limits) | limits)
    return with_group(taken, group, meanwhile=meanwhile(**seen), node=replace(taken.node, **node), **changes)


REFAULTS = {"workingset_refault_file": 9000}
PRESSED = {"some": (0.1, 0.1, 0.1)}
GROUP = "/pmc-parent/pmc-child"
LONG = StallsSeen(4, 400_000_000, 120_000_000, {"limit": 4}, 0, ("psi",), 0)
THROTTLED = {"events": {GROUP: {"high": 50}}, "stalls": STALLS}
SMALL = {"MemTotal": 1000 * MIB, "MemAvailable": 400 * MIB, "SwapFree": 0, "SwapTotal": 0}
GROWING = {"growth_bytes_per_s": 2.0 * MIB, "anon_growth_bytes_per_s": 2.0 * MIB, "anon_grows": True}


@pytest.mark.parametrize(
    ("snapshot", "verdict", "worry"),
    [
        (changed(), "healthy", "no"),
        (changed(anon=10, inactive_file=54), "healthy-cache", "no"),
        (changed(anon=10, inactive_file=54, seen={"stalls": STALLS}), "cache-pressure", "watch"),
        (changed(anon=10, inactive_file=54, seen={"stalls": STALLS, "stat": REFAULTS}), "thrash", "watch"),
        (changed(anon=10, inactive_file=54, seen={"stalls": LONG, "stat": REFAULTS}), "thrash", "yes"),
        (changed(anon=40, inactive_file=4, seen=GROWING), "growth", "yes"),
        (changed(anon=62, inactive_file=1), "full", "watch"),
        (changed(anon=62, inactive_file=1, seen={"events": {GROUP: {"max": 3}}}), "full", "yes"),
        (changed(anon=57, inactive_file=4), "full", "watch"),
        (changed(seen={"events": {GROUP: {"oom_kill": 1}}}), "killed", "yes"),
        (changed(shmem=40, inactive_file=24, processes=()), "tmpfs-leak", "watch"),
        (changed(shmem=62, inactive_file=1, processes=()), "tmpfs-leak", "yes"),
        (changed(shmem=40, inactive_file=24), "healthy-cache", "no"),  # a process maps it: shared buffers
        (changed(anon=20, kernel=42, inactive_file=1), "kernel-memory", "yes"),
        (changed(anon=20, inactive_file=44, file_dirty=20), "dirty-backlog", "watch"),
        (changed(anon=20, inactive_file=44, file_dirty=5, seen={"stalls": STALLS}), "dirty-backlog", "watch"),
        (changed(anon=20, inactive_file=44, file_dirty=5), "healthy-cache", "no"),
        (changed(anon=30, inactive_file=30, seen={"stat": {"pswpin": 3000}}), "swap-storm", "watch"),
        (changed(anon=30, inactive_file=30, seen={"stat": {"pswpin": 3000}, "stalls": LONG}), "swap-storm", "yes"),
        (changed(anon=10, inactive_file=22, limits={"high": 32 * MIB}), "healthy-cache", "no"),
        (changed(anon=10, inactive_file=22, limits={"high": 32 * MIB}, seen=THROTTLED), "throttled", "watch"),
        (changed(anon=62, inactive_file=1, others={"oom_kill_disable": 1, "under_oom": 1}), "hung", "yes"),
        (changed(seen={"vmstat": {"allocstall_normal": 5}}), "healthy", "no"),
        (
            changed(seen={"vmstat": {"allocstall_normal": 5}}, node={"pressure": PRESSED}),
            "node-squeezed",
            "watch",
        ),
        (changed(node={"meminfo": {"MemTotal": 1000 * MIB, "MemAvailable": 9 * MIB, "SwapFree": 0}}), "node-squeezed", "yes"),
        (changed(limits={"max": None}, node={"meminfo": SMALL}, seen=GROWING), "growth", "yes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_situation_has_its_verdict(snapshot, verdict, worry):
    told = explain(snapshot).verdict
    assert (told.name, told.worry) == (verdict, worry), told
    assert told.says
    assert told.advice
    assert all(one.do and one.costs for one in told.advice)


def with_parent(taken: Snapshot, neighbour_mib: int, **parts: int) -> Snapshot:
    """In a group of 64 MiB, beside another."""
    parent = replace(of(taken.levels[1], **parts), limits={"max": 64 * MIB})
    beside = replace(taken.group, name="/pmc-parent/other", usage_bytes=neighbour_mib * MIB)
    neighbours = (Neighbour(beside, None, None),)
    return replace(taken, levels=(taken.group, parent, taken.levels[2]), neighbours=neighbours)


def test_a_parents_limit_squeezes():
    told = explain(with_parent(calm(), 54, anon=60, inactive_file=4))
    assert (told.verdict.name, told.verdict.worry) == ("parent-squeezed", "yes")
    assert [(one.group, one.own) for one in told.edge.sharers] == [
        ("/pmc-parent/other", False),
        ("/pmc-parent/pmc-child", True),
    ]
    assert "/pmc-parent/other uses most: 54.0 MiB" in " ".join(told.edge.says)


def test_a_parent_that_is_full_of_cache_squeezes_nobody():
    told = explain(with_parent(calm(), 54, anon=10, inactive_file=54))
    assert told.verdict.name == "healthy-cache"


def test_swap_puts_off_that_it_is_full():
    taken = changed(anon=62, inactive_file=1)
    assert explain(taken).verdict.name == "full"
    node = replace(taken.node, meminfo=dict(taken.node.meminfo) | {"SwapTotal": 128 * MIB, "SwapFree": 128 * MIB})
    assert explain(replace(taken, node=node)).verdict.name == "swappable"
    group = replace(taken.group, limits=dict(taken.group.limits) | {"swap": 0})  # but not where it may not swap
    assert explain(with_group(replace(taken, node=node), group)).verdict.name == "full"


def test_what_cannot_be_read_is_unknown():
    taken = calm()
    group = replace(taken.group, usage_bytes=None, stat={}, limits={}, events={})
    told = explain(with_group(taken, group, processes=(), meanwhile=None))
    assert told.verdict.name == "unknown"
    assert told.makeup.usage_bytes is None
    assert told.makeup.parts == ()


def advised(snapshot: Snapshot) -> str:
    return "\n".join(f"{one.do} {one.costs}" for one in explain(snapshot).verdict.advice)


def test_advice_names_the_file_whose_limit_it_is():
    assert "64.0 MiB (memory.max of /pmc-parent/pmc-child" in advised(changed(anon=62, inactive_file=1))
    high = changed(anon=10, inactive_file=22, limits={"high": 32 * MIB}, seen=THROTTLED)
    assert "32.0 MiB (memory.high of /pmc-parent/pmc-child" in advised(high)


def test_where_memory_and_swap_have_the_same_limit_both_must_be_raised():
    taken = replace(calm(), version=1)
    group = replace(of(taken.group, anon=62, inactive_file=1), limits={"max": 64 * MIB, "memsw": 64 * MIB})
    text = advised(with_group(taken, group))
    assert "memory.memsw.limit_in_bytes" in text
    assert explain(with_group(taken, group)).verdict.name == "full"


def test_swappiness_0_swaps_nothing_at_a_groups_limit():
    taken = changed(anon=62, inactive_file=1, others={"swappiness": 0})
    node = replace(taken.node, meminfo=dict(taken.node.meminfo) | {"SwapTotal": 128 * MIB, "SwapFree": 128 * MIB})
    told = explain(replace(taken, node=node))
    assert told.verdict.name == "full"
    assert (told.outcome.swap_left_bytes, told.outcome.total_bytes) == (0, 64 * MIB)
    assert "swappiness is 0" in " ".join(told.outcome.says)


def test_kills_before_are_never_nothing_to_worry_about():
    taken = calm()
    group = replace(taken.group, events=dict(taken.group.events) | {"oom_kill": 3})
    told = explain(with_group(taken, group)).verdict
    assert (told.name, told.worry) == ("healthy", "watch")
    assert ("OOM kills", "3 so far") in told.because


def test_a_full_group_in_a_full_parent_is_told_of_itself():
    taken = changed(anon=62, inactive_file=1)
    told = explain(with_parent(taken, 54, anon=60, inactive_file=4)).verdict
    assert (told.name, told.also[0]) == ("full", "parent-squeezed")


def test_every_verdict_has_advice_and_dangerous_advice_says_so():
    from pymemcg.explain._advice import advice

    taken = calm()
    edge = explain(taken).edge
    for name in VERDICTS:
        assert advice(name, taken, edge)
    assert [one.danger for one in advice("growth", taken, edge) if "OOM killer off" in one.do] == [True]
