# SPDX-License-Identifier: Apache-2.0
"""The machine as explained: watermarks, reclaim, what would be granted, fragmentation."""

from __future__ import annotations

import json
import mmap
import resource
import shutil
from dataclasses import asdict, fields, replace

import pytest
from nodetree import DATA

from pymemcg.explain import Meanwhile, Tree, opened, take
from pymemcg.explain._commit import commit_verdict, largest_commit
from pymemcg.explain._node import machine
from pymemcg.explain._snapshot import Node, Snapshot
from pymemcg.explain._zones import huge_order, usable

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
KERNELS = sorted(path.name for path in DATA.iterdir() if (path / "proc").is_dir())


def snapshot_of(kernel: str) -> Snapshot:
    with opened(str(DATA / kernel)) as tree:
        return take(tree)


@pytest.fixture(scope="module")
def taken() -> Snapshot:
    return snapshot_of("6.12-v2")


def with_node(taken: Snapshot, **changes: object) -> Snapshot:
    """With another node; of `meminfo`, `settings` and `vmstat` only what is given is another."""
    for name in {"meminfo", "settings", "vmstat"} & changes.keys():
        changes[name] = {**getattr(taken.node, name), **changes[name]}
    return replace(taken, node=replace(taken.node, **changes))


def watched(taken: Snapshot, **vmstat: int) -> Snapshot:
    unknown = dict.fromkeys(field.name for field in fields(Meanwhile))
    meanwhile = Meanwhile(**unknown | {"seconds": 5.0, "events": {}, "stat": {}, "vmstat": vmstat})
    return replace(taken, meanwhile=meanwhile)


def said(taken: Snapshot) -> str:
    return "\n".join(machine(taken).says)


@pytest.fixture(params=[*KERNELS, "here"])
def each(request) -> Snapshot:
    return take(Tree()) if request.param == "here" else snapshot_of(request.param)


# ---- Every kernel --------------------------------------------------------------------------------------------------


def test_figures_are_the_files(each):
    told, info = machine(each), each.node.meminfo
    json.dumps(asdict(told))
    assert told.total_bytes == info["MemTotal"]
    assert told.free_bytes == sum(zone.free_bytes for zone in each.node.zones)
    assert told.min_bytes < told.low_bytes < told.high_bytes < told.total_bytes
    assert ("Only" in told.says[1]) == (told.managed_bytes < 0.95 * told.total_bytes)
    if told.managed_bytes == told.total_bytes:  # CPUs' own free pages are in no zone's
        assert told.free_bytes == pytest.approx(info["MemFree"], rel=0.01)
    assert len(told.zones) == len(each.node.zones) > 0
    assert told.boot.direct_times == sum(count for name, count in each.node.vmstat.items() if name.startswith("allocstall"))
    assert told.boot.kswapd_bytes == each.node.vmstat["pgsteal_kswapd"] * each.node.page_bytes
    assert told.lately is None
    assert [grant.asked_bytes for grant in told.grants] == sorted(grant.asked_bytes for grant in told.grants)


def test_memory_that_a_hypervisor_keeps_back():
    told = machine(snapshot_of("6.18-hybrid"))
    assert told.managed_bytes == (3840 + 772918 + 2424832) * PAGE
    assert told.says[1].startswith("Only 12.2 GiB of that are in zones")


@pytest.mark.parametrize("kernel", KERNELS)
def test_captured_kernels_were_not_short(kernel):
    told = machine(snapshot_of(kernel))
    assert {zone.level for zone in told.zones} == {"above high"}
    assert (told.overcommit, told.largest_grant_bytes) == (0, told.total_bytes + told.swap_total_bytes)
    assert [grant.granted for grant in told.grants][-2:] == [True, False]
    assert told.largest_order is None  # they have no buddyinfo


# ---- Watermarks and reclaim ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "level"),
    [(100, "above high"), (90, "above high"), (89, "above low"), (60, "above low"), (59, "below low"), (29, "below min")],
)
def test_levels_of_a_zone(taken, free, level):
    zone = replace(taken.node.zones[-1], free_bytes=free, min_bytes=30, low_bytes=60, high_bytes=90)
    told = machine(with_node(taken, zones=(zone,)))
    assert [state.level for state in told.zones] == [level]
    assert ("BELOW the low watermark" in "\n".join(told.says)) == (free < 60)


def test_one_zone_that_is_short_is_named(taken):
    first, *others = taken.node.zones
    short = replace(first, free_bytes=first.low_bytes - 1)
    assert f"Below their own low watermark: {first.name} of node 0" in said(with_node(taken, zones=(short, *others)))


def test_of_the_seconds_before(taken):
    quiet = machine(watched(taken))
    assert (quiet.lately.direct_times, quiet.lately.kswapd_bytes, quiet.lately.oom_kills) == (0, 0, 0)
    assert "nothing was reclaimed for the machine" in said(watched(taken))
    assert "kswapd reclaimed in the background" in said(watched(taken, pgscan_kswapd=32, pgsteal_kswapd=30))
    short = watched(taken, allocstall_normal=4, allocstall_movable=3, pgsteal_direct=200, pgscan_kswapd=1)
    assert (machine(short).lately.direct_times, machine(short).lately.direct_bytes) == (7, 200 * PAGE)
    assert "reclaim for the whole machine 7 times" in said(short)


def test_reclaim_at_a_groups_limit_is_not_the_machines(taken):
    assert "nothing was reclaimed for the machine" in said(watched(taken, pgscan_file=5000, pgsteal_file=5000))


def test_totals_are_not_said_to_be_now(taken):
    assert "Since it was booted, nothing" in said(taken)
    told = said(with_node(taken, vmstat={"allocstall_normal": 12, "pgsteal_kswapd": 256}))
    assert "Since it was booted, kswapd has freed 1.0 MiB, and whoever allocates had to 12 times" in told
    assert "Since it was booted" not in said(watched(with_node(taken, vmstat={"allocstall_normal": 12})))


def test_allocstall_of_old_kernels_is_one(taken):
    node = replace(taken.node, vmstat={"allocstall": 9, "pgsteal_kswapd_normal": 5})
    told = machine(replace(taken, node=node)).boot
    assert (told.direct_times, told.kswapd_bytes, told.oom_kills) == (9, None, None)


# ---- What would be granted -----------------------------------------------------------------------------------------


def node_of(taken: Snapshot, mode: int | None, **settings: int) -> Node:
    info = {"MemTotal": 8 * GIB, "SwapTotal": 2 * GIB, "CommitLimit": 6 * GIB, "Committed_AS": 4 * GIB}
    chosen = settings if mode is None else settings | {"overcommit_memory": mode}
    return replace(taken.node, meminfo=info, settings=chosen)


def test_mode_0_refuses_only_more_than_memory_and_swap(taken):
    node = node_of(taken, 0)
    assert largest_commit(node) == 10 * GIB
    assert commit_verdict(node, 10 * GIB) == (True, "no more than all memory and swap, 10.0 GiB")
    assert commit_verdict(node, 10 * GIB + 1)[0] is False


def test_mode_1_refuses_nothing(taken):
    assert commit_verdict(node_of(taken, 1), 1 << 60) == (True, "mode 1 grants everything")
    assert largest_commit(node_of(taken, 1)) is None
    assert "vm.overcommit_memory is 1: malloc, mmap and fork never fail" in said(replace(taken, node=node_of(taken, 1)))


@pytest.mark.parametrize(
    ("virtual", "user_kib", "kept"),
    [
        (None, 100 << 10, 100 * MIB),
        (320 * MIB, 100 << 10, 10 * MIB),
        (64 * GIB, 100 << 10, 100 * MIB),
        (0, 100 << 10, 0),
        (None, None, 128 * MIB),
    ],
)
def test_mode_2_goes_by_commit_limit_less_reserves(taken, virtual, user_kib, kept):
    settings = {"admin_reserve_kbytes": 8 << 10} | ({} if user_kib is None else {"user_reserve_kbytes": user_kib})
    node = node_of(taken, 2, **settings)
    most = largest_commit(node, virtual)
    # __vm_enough_memory: Committed_AS with the new pages < CommitLimit - reserves.
    assert 4 * GIB + most < 6 * GIB - 8 * MIB - kept <= 4 * GIB + most + PAGE
    assert commit_verdict(node, most, virtual)[0] is True
    assert commit_verdict(node, most + 1, virtual)[0] is False


def test_mode_2_that_has_promised_more_than_it_may(taken):
    node = replace(node_of(taken, 2), meminfo={"CommitLimit": GIB, "Committed_AS": 2 * GIB})
    assert largest_commit(node) == 0
    assert commit_verdict(node, PAGE)[0] is False


def test_mode_2_in_words(taken):
    told = said(replace(taken, node=node_of(taken, 2)))
    assert "beyond 6.0 GiB (CommitLimit) malloc, mmap and fork fail" in told
    assert "1.0 GiB yes, 4.0 GiB no, 8.0 GiB no, 16.0 GiB no" in told


def test_mode_0_of_old_kernels_goes_by_what_could_be_freed(taken):
    info = {
        "MemTotal": 8,
        "MemFree": 2,
        "Cached": 3,
        "Buffers": 0,
        "Shmem": 1,
        "SwapTotal": 1,
        "SwapFree": 1,
        "SReclaimable": 0,
    }
    info = {name: count * GIB for name, count in info.items()}
    settings = {"overcommit_memory": 0, "admin_reserve_kbytes": 8 << 10}
    old = replace(taken.node, kernel="4.19.91-27.al7.x86_64", meminfo=info, settings=settings, zones=())
    assert largest_commit(old) == 5 * GIB - 8 * MIB
    assert commit_verdict(old, 6 * GIB)[0] is False
    assert "as before Linux 5.2" in said(replace(taken, node=old))
    for kernel in ("5.2.0", "5.10.134-12.al8", "6.1.0", "10.0.1", None):
        assert largest_commit(replace(old, kernel=kernel)) == 9 * GIB


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_what_was_promised_is_left_out_where_it_is_not_known(taken, mode):
    node = node_of(taken, mode)
    assert "(Committed_AS)" in said(replace(taken, node=node))
    for lost in ({"Committed_AS"}, {"Committed_AS", "CommitLimit"}):
        info = {key: count for key, count in node.meminfo.items() if key not in lost}
        told = [line for line in machine(replace(taken, node=replace(node, meminfo=info))).says if "overcommit_memory" in line]
        assert len(told) == 1
        assert "Committed_AS" not in told[0]
        assert "–" not in told[0]


@pytest.mark.parametrize("mode", [None, 0, 2])
def test_what_is_not_known_is_not_granted_nor_refused(taken, mode):
    node = replace(node_of(taken, mode), meminfo={})
    granted, why = commit_verdict(node, GIB)
    assert granted is None
    assert "cannot be read" in why
    assert machine(replace(taken, node=node)).grants == ()


def test_this_kernel_grants_what_is_said():
    here = take(Tree()).node
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("RLIMIT_AS refuses before the kernel counts")
    most = largest_commit(here)
    # In mode 2 what others have changes all the time; in mode 0 nothing does.
    sizes = [GIB, most - (64 * MIB if here.settings["overcommit_memory"] == 2 else 0)] if most else [GIB]
    sizes += [most + 64 * MIB, 2 * most] if most else []
    for count in filter(None, sizes):
        try:
            mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
            got = True
        except OSError:
            got = False
        assert commit_verdict(here, count)[0] is got, count


# ---- Fragmentation -------------------------------------------------------------------------------------------------


def unusable_free_index(blocks: tuple[int, ...], order: int) -> int:
    """mm/vmstat.c, in thousandths."""
    free = sum(count << i for i, count in enumerate(blocks))
    suitable = sum(count << (i - order) for i, count in enumerate(blocks) if i >= order)
    return 1000 if not free else (free - (suitable << order)) * 1000 // free


@pytest.mark.parametrize("blocks", [(5, 3, 1, 0, 2, 0, 0, 0, 0, 0, 7), (100, 0, 0, 0), (0, 0, 0), (0, 0, 0, 1)])
@pytest.mark.parametrize("order", [0, 2, 3, 9])
def test_usable_is_what_the_kernels_index_leaves(blocks, order):
    assert usable(blocks, order) == pytest.approx(1 - unusable_free_index(blocks, order) / 1000, abs=0.001)


@pytest.mark.parametrize(("page", "order"), [(4 << 10, 9), (16 << 10, 11), (64 << 10, 13)])
def test_a_huge_page_is_as_many_pages_as_a_page_has_pointers(page, order):
    assert huge_order(page) == order


def test_fragmentation_from_buddyinfo(tmp_path):
    root = tmp_path / "it"
    shutil.copytree(DATA / "6.12-v2", root)
    text = "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n"
    text += "Node 0, zone    DMA32    500    200      3      1      0      0      0      0      0      0      0 \n"
    (root / "proc/buddyinfo").write_text(text)
    with opened(str(root)) as tree:
        taken = take(tree)
    told = machine(taken)
    dma, dma32 = told.zones[:2]
    assert (dma.largest_order, dma.usable[2], dma.usable[9]) == (10, 1.0, 3584 / 3840)
    assert (dma32.largest_order, dma32.usable) == (3, {2: 20 / 920, 3: 8 / 920, 9: 0.0})
    assert told.largest_order == 10
    assert "a huge page's size (order 9)" in said(taken)
    assert "DMA32 of node 0 is fragmented: only 0.9 % of its free memory is in pieces of 32.0 KiB or more" in said(taken)
    assert "DMA of node 0 is fragmented" not in said(taken)


def test_fragmentation_of_this_machine():
    here = take(Tree())
    for zone, state in zip(here.node.zones, machine(here).zones, strict=True):
        if zone.free_blocks:
            assert state.usable.keys() == {2, 3, huge_order(here.node.page_bytes)}
            assert all(0 <= ratio <= 1 for ratio in state.usable.values())
            assert state.usable[2] >= state.usable[3]


# ---- Little that can be read ---------------------------------------------------------------------------------------


def test_nothing_that_can_be_read_is_no_crash(taken):
    node = Node(None, {}, {}, (), {}, None, PAGE, {})
    told = machine(replace(taken, node=node, processes=()))
    figures = {name: value for name, value in asdict(told).items() if name != "says"}
    assert {value for value in figures.values() if value not in ((), [])} == {None}
    assert told.says == ("Whether there is swap cannot be seen.",)
    assert "cannot be seen" in said(watched(replace(taken, node=node)))
