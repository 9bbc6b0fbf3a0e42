# SPDX-License-Identifier: Apache-2.0
"""OOM kills found in kernel logs: the captured ones, and each format of other kernels as their source prints it."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest
from oomlogs import FRAGMENTED, GROUP, IN_PIECES, LONE, MACHINE, MACHINE_6_8, OWN_3_10, OWN_5_1, PARENT_4_15

from pymemcg.oom import CAUSES, Reader, kills

DATA = Path(__file__).parent.parent / "data"
CAPTURED_6_12 = (DATA / "6.12-v2" / "dmesg-oom.txt").read_text()
CAPTURED = sorted(DATA.glob("*/dmesg-oom.txt"))
MIB = 1 << 20

ALL = [OWN_3_10, PARENT_4_15, OWN_5_1, MACHINE, FRAGMENTED, LONE, GROUP, *(path.read_text() for path in DATA.glob("oom/*.txt"))]


def of(text: str):
    return list(kills(text.splitlines()))


def only(text: str):
    (kill,) = of(text)
    return kill


# ---- Captured ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.parent.name)
def test_captured_kernels(path):
    kill = only(path.read_text())
    assert (kill.cause, kill.name, kill.order) == ("own-limit", "python3", 0)
    assert kill.oom_memcg == kill.task_memcg == "/pmc-parent/pmc-child"
    assert (kill.usage_bytes, kill.limit_bytes, kill.page_bytes) == (64 * MIB, 64 * MIB, 4096)
    assert kill.asker is not None
    assert kill.asker.pid == kill.pid
    assert f"pid={kill.pid},uid={kill.uid}" in path.read_text()
    assert kill.candidates[0].pid == kill.pid
    assert kill.candidates[0].rss_bytes == pytest.approx(
        kill.anon_rss_bytes + kill.file_rss_bytes + kill.shmem_rss_bytes, rel=0.1
    )
    assert sum(kill.memory[name] for name in ("anon", "file")) + kill.memory.get("kernel", 0) == pytest.approx(
        64 * MIB, rel=0.02
    )
    assert kill.entrypoint == ("yes" if len(kill.candidates) == 1 else "unlikely")


def test_what_people_paste():
    """A pager broke the names, an editor put its line numbers in front, and lines are missing: what is there is used."""
    kill = only((DATA / "oom" / "kubernetes-host-with-line-numbers.txt").read_text())
    pod = "/kubepods.slice/kubepods-pod9df61518_c02a_11e9_9694_246e967d5d94.slice"
    container = "docker-2e8e56c5bf8a2e4a5c5ef824f1323d44f2194b9ffbb4336d579bd0ff435a2f98.scope"
    assert (kill.cause, kill.pid, kill.name, kill.uid) == ("parent-limit", 27220, "python", 1000)
    assert (kill.oom_memcg, kill.task_memcg) == (pod, f"{pod}/{container}")
    assert (kill.order, kill.anon_rss_bytes, kill.usage_bytes) == (None, None, None)
    assert kill.memory["anon"] == 66947340 << 10
    assert kill.candidates[0].rss_bytes == 16715656 * 4096
    assert len(kill.candidates) == 8


# ---- Kernels that are not at hand ----------------------------------------------------------------------------------


def test_linux_3_10():
    kill = only(OWN_3_10)
    assert (kill.cause, kill.pid, kill.name, kill.anon_rss_bytes) == ("own-limit", 4242, "java", 523800 << 10)
    assert kill.chosen_pid is None  # 4300 is a thread of it
    assert kill.asker.pid == 4300
    assert (kill.failcnt, kill.swap_kind) == (1234, "memory+swap")
    java, tail = kill.candidates
    assert (java.badness_bytes, tail.name, tail.uid) == ((131051 + 402) * 4096, "tail -f", 7)
    assert tail.badness_bytes == (110 + 100 * (131072 // 1000)) * 4096
    assert kill.entrypoint == "likely"


def test_what_a_cut_line_lacks_is_not_known():
    """A figure that is not there is not 0: there is no rank without it, and the last one that is there is no name."""
    row = OWN_3_10.splitlines()[11]
    kill = only(OWN_3_10.replace(row, row.removesuffix("             0 java")))
    tail, java = kill.candidates
    assert (tail.name, java.pid, java.name, java.rss_bytes) == ("tail -f", 4242, "", 131051 * 4096)
    assert (java.uid, java.oom_score_adj, java.badness_bytes, kill.oom_score_adj) == (0, None, None, None)
    assert java.swap_bytes is None  # its last digits may be cut off, too
    assert None not in (tail.swap_bytes, tail.oom_score_adj, tail.badness_bytes)


def test_a_child_that_dies_for_its_parent():
    """Until Linux 5.3."""
    text = OWN_3_10.replace("Kill process 4300 (java)", "Kill process 4242 (java)").replace(
        "Killed process 4242 (java)", "Killed process 4400 (tail -f)"
    )
    kill = only(text)
    assert (kill.pid, kill.name, kill.chosen_pid, kill.entrypoint) == (4400, "tail -f", 4242, "unlikely")


def test_linux_4_15_and_a_pods_limit():
    kill = only(PARENT_4_15)
    assert (kill.cause, kill.oom_memcg, kill.task_memcg) == (
        "parent-limit",
        "/kubepods/burstable/podA",
        "/kubepods/burstable/podA/c1",
    )
    assert kill.memory["anon"] == 1040000 << 10  # of its groups together
    assert [one.badness_bytes for one in kill.candidates] == [None, None], "of what they have thousandths is not told"
    assert (kill.when, kill.seconds) == ("Nov  2 10:11:12", 500.100001)
    assert kill.entrypoint == "unknown"


def test_linux_5_1_says_no_constraint_of_a_group():
    kill = only(OWN_5_1)
    assert (kill.cause, kill.constraint) == ("own-limit", "NONE")


def test_the_whole_machine():
    kill = only(MACHINE)
    assert (kill.cause, kill.name, kill.task_memcg, kill.oom_memcg) == ("machine", "Web Content", "/user.slice/a.scope", None)
    assert (kill.ram_bytes, kill.total_swap_bytes, kill.free_swap_bytes) == (250000 * 4096, 4 * MIB, 12 << 10)
    assert [(zone.name, zone.free_bytes >> 10, zone.min_bytes >> 10) for zone in kill.zones] == [
        ("DMA", 4000, 256),
        ("Normal", 19000, 20000),
    ]
    assert kill.zones[1].largest_free_bytes == 8192
    assert kill.memory["file_mapped"] == 50 * 4096
    assert (kill.memory["anon"], kill.memory["file"]) == ((241000 - 60) * 4096, (50 + 60) * 4096)
    worst, never = kill.candidates
    assert worst.badness_bytes == (230000 + 900 + 2000000 // 4096) * 4096
    assert (worst.anon_rss_bytes, never.badness_bytes) == (229000 * 4096, None)


@pytest.mark.parametrize(("constraint", "nodes"), [("CONSTRAINT_CPUSET", "0"), ("CONSTRAINT_MEMORY_POLICY", "1")])
def test_nodes(constraint, nodes):
    kill = only(MACHINE_6_8.format(constraint=constraint, nodes=nodes))
    assert kill.cause == "node"
    assert f"nodes {nodes}," in kill.why


def test_nodes_before_5_0():
    old = MACHINE.replace(
        "gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0", "gfp_mask=0x14280ca, nodemask={}, order=0"
    )
    old = "".join(line for line in old.splitlines(keepends=True) if "oom-kill:constraint" not in line)
    assert only(old.format("1")).cause == "node"
    assert only(old.format("(null)")).cause == "machine"
    cpuset = "[200.03] cc1plus cpuset=part mems_allowed=1\n[200.10] Mem-Info:"
    assert only(old.format("(null)").replace("[200.10] Mem-Info:", cpuset)).cause == "node"


def test_fragmentation():
    kill = only(FRAGMENTED)
    assert (kill.cause, kill.order) == ("fragmentation", 3)
    assert "32.0 KiB were wanted in one piece; zone Normal had 87.9 MiB free" in kill.why
    assert "the largest piece 8.0 KiB" in kill.why


def test_high_order_without_free_memory_is_the_machine():
    assert only(IN_PIECES.format(constraint="CONSTRAINT_NONE", nodes="(null)")).cause == "machine"


def test_a_high_order_at_a_limit_is_the_limit():
    assert only(OWN_5_1.replace("order=0", "order=2")).cause == "own-limit"


def test_memory_that_the_request_may_not_have():
    """A 32-bit kernel's own needs must lie in low memory, however much of the other is free."""
    text = IN_PIECES.format(constraint="CONSTRAINT_NONE", nodes="(null)")
    high = "[200.165] Node 0 HighMem free:90000kB boost:0kB min:512kB low:640kB high:768kB\n[200.17] Node 0 DMA:"
    assert only(text.replace("[200.17] Node 0 DMA:", high)).cause == "machine"
    assert only(text.replace("[200.17] Node 0 DMA:", high).replace("0xcc0(GFP_KERNEL)", "0xcc2")).cause == "fragmentation"


def test_what_is_kept_for_requests_that_a_higher_zone_cannot_serve():
    """Of lowmem_reserve that number counts which is of the highest zone that the request may have."""
    movable = "[200.165] Node 0 Movable free:200kB boost:0kB min:256kB low:320kB high:384kB\n"
    reserve = "[200.16] lowmem_reserve[]: 0 0 0"
    text = FRAGMENTED.replace(f"{reserve} 0\n", f"{reserve} 30000\n{movable}")
    kernels = only(text)
    assert (kernels.cause, [zone.reserved_bytes for zone in kernels.zones]) == ("fragmentation", [960 * 4096, 0, 0])
    users = only(text.replace("0xcc0(GFP_KERNEL)", "0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP)"))
    assert (users.cause, [zone.reserved_bytes for zone in users.zones]) == ("machine", [960 * 4096, 30000 * 4096, 0])
    low = only(text.replace("0xcc0(GFP_KERNEL)", "0xcc1(GFP_KERNEL|GFP_DMA)"))
    assert [zone.reserved_bytes for zone in low.zones] == [0, 0, 0]
    other_node = only(text.replace("Node 0 Movable free", "Node 1 Movable free").replace("0xcc0(GFP_KERNEL)", "0x140cca"))
    assert [zone.reserved_bytes for zone in other_node.zones] == [960 * 4096, 0, 0]


def test_sysrq():
    kill = only(MACHINE.replace("order=0", "order=-1"))
    assert (kill.cause, kill.order) == ("machine", -1)
    assert "SysRq" in kill.why


def test_linux_2_6_32():
    text = """\
Jun 20 12:47:02 h kernel: php-fpm invoked oom-killer: gfp_mask=0x201da, order=0, oom_adj=0, oom_score_adj=0
Jun 20 12:47:02 h kernel: Pid: 4903, comm: php-fpm Not tainted 2.6.32-642.el6.x86_64 #1
Jun 20 12:47:02 h kernel: [ pid ]   uid  tgid total_vm      rss cpu oom_adj oom_score_adj name
Jun 20 12:47:02 h kernel: [14278]  1002 14278   140000    34969   1       0             0 php-fpm
Jun 20 12:47:02 h kernel: Out of memory: Kill process 14278 (php-fpm) score 21 or sacrifice child
Jun 20 12:47:02 h kernel: Killed process 14278, UID 1002, (php-fpm) total-vm:560000kB, anon-rss:139876kB, file-rss:0kB
"""
    kill = only(text)
    assert (kill.cause, kill.pid, kill.uid, kill.anon_rss_bytes, kill.asker.pid) == ("machine", 14278, 1002, 139876 << 10, 4903)
    assert kill.candidates[0].rss_bytes == 34969 * 4096


def test_a_whole_group():
    first, second = of(GROUP)
    assert (first.pid, second.pid) == (51, 52)
    assert (first.group_kill, first.entrypoint) == (True, "yes"), "said only in the line after it"
    assert (second.group_kill, second.entrypoint, second.cause) == (True, "yes", "own-limit")


# ---- What is missing -----------------------------------------------------------------------------------------------


def test_the_constraint_is_missing():
    """It is rate-limited, and "Killed process" is not."""
    for path in CAPTURED:
        lines = [line for line in path.read_text().splitlines() if "oom-kill:" not in line]
        kill = only("\n".join(lines))
        assert (kill.cause, kill.oom_memcg, kill.task_memcg) == ("group-limit", "/pmc-parent/pmc-child", None)


def test_nothing_but_the_kill():
    kill = only(LONE)
    assert (kill.cause, kill.pid, kill.name, kill.anon_rss_bytes, kill.oom_score_adj) == ("group-limit", 12, "a", 8192, -998)
    assert (kill.order, kill.asker, kill.oom_memcg, kill.candidates) == (None, None, None, ())
    assert only(LONE.replace("Memory cgroup out", "Out")).cause == "machine"
    assert only("Killed process 12 (a) total-vm:9kB, anon-rss:8kB, file-rss:0kB").cause == "unknown"


def test_a_kill_between_two_reports_is_of_neither():
    lone = LONE.replace("process 12 (a)", "process 99 (z)")
    told = of(OWN_5_1 + lone + "\n" + GROUP)
    assert [(kill.pid, kill.cause) for kill in told] == [
        (51, "own-limit"),
        (99, "group-limit"),
        (51, "own-limit"),
        (52, "own-limit"),
    ]


@pytest.mark.parametrize("text", [MACHINE, OWN_3_10, GROUP], ids=["machine", "3.10", "group"])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("group", [True, False])
def test_a_kill_between_a_head_and_its_table_is_another_one(text, at, group):
    lone = LONE.replace("process 12 (a)", "process 99 (z)")
    lines = text.splitlines()
    lines.insert(at, lone if group else lone.replace("Memory cgroup out", "Out"))
    other, *rest = of("\n".join(lines))
    assert (other.pid, other.asker, other.order, other.candidates) == (99, None, None, ())
    assert [{**kill.to_dict(), "line": 0} for kill in rest] == [{**kill.to_dict(), "line": 0} for kill in of(text)]


def test_lines_with_kill_alone():
    """As of `grep kill`."""
    kill = only("\n".join(line for line in OWN_3_10.splitlines() if "kill" in line.lower()))
    assert (kill.pid, kill.order, kill.asker.name) == (4242, 0, "java")


@pytest.mark.parametrize("text", [OWN_3_10, PARENT_4_15, OWN_5_1, MACHINE], ids=["3.10", "4.15", "5.1", "6.8"])
def test_killed_is_missing(text):
    """A report that names who is to die is one of a kill."""
    whole, cut = only(text), only("".join(line for line in text.splitlines(keepends=True) if "Killed process" not in line))
    assert cut.cause == whole.cause
    assert cut.anon_rss_bytes is None


@pytest.mark.parametrize(
    "line",
    [
        "app: Killed process 99 (worker) because it hung",
        "sup: will Kill process 7 (x) now",
        "watchdog: ran out of memory, Killed process 12 (child) by watchdog",
    ],
)
def test_what_programs_say_is_no_kill(line):
    assert of(line + "\n") == []


def test_an_order_that_is_no_number():
    for order in ("9999999999999999999", "1200"):
        assert only(OWN_5_1.replace("order=0", f"order={order}")).order is None


def test_a_name_that_looks_like_a_stack():
    assert only(OWN_5_1.replace("work", "w+0x").replace("(w+0x)", "(w+0x)")).name == "w+0x"


def test_a_break_within_killed():
    lone = LONE.replace("Killed process", "Killed\nprocess")
    assert (only(lone).pid, only(lone).anon_rss_bytes) == (12, 8192)


def test_a_request_that_was_long_ago_is_of_no_later_kill():
    later = "[1.0] sysrq: Manual OOM execution\n[1.1] OOM request ignored. No task eligible\n" + "[2.0] x\n" * 100 + MACHINE
    assert "SysRq" not in only(later).why
    assert "SysRq" in only("[1.0] sysrq: Manual OOM execution\n" + MACHINE).why


def test_no_kill():
    assert of("Out of memory and no killable processes...\nKernel panic - not syncing: System is deadlocked on memory\n") == []
    assert of("[1.0] oom_reaper: reaped process 7 (x), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB\n") == []
    assert of("systemd[1]: a.service: A process of this unit has been killed by the OOM killer.\n") == []


# ---- Other lines, other forms --------------------------------------------------------------------------------------

PREFIXES = {
    "none": "{line}",
    "dmesg": "[   12.961476] {line}",
    "dmesg -T": "[Mon Nov  2 10:00:00 2026] {line}",
    "dmesg -x": "kern  :warn  : [   12.961476] {line}",
    "dmesg --time-format iso": "2026-11-02T10:00:00,123456+00:00 {line}",
    "raw": "<4>[   12.961476] {line}",
    "kmsg": "4,1234,12961476,-;{line}",
    "caller": "[   12.961476][  T216] {line}",
    "journalctl": "Nov 02 10:00:00 host kernel: {line}",
    "syslog": "Nov  2 10:00:00 host kernel: [   12.961476] {line}",
    "rsyslog": "2026-11-02T10:00:00.123456+00:00 host kernel: [   12.961476] {line}",
    "docker": '{{"log":"[   12.961476] {line}\\n","stream":"stdout","time":"2026-11-02T10:00:00.1Z"}}',
    "kubernetes": "2026-11-02T10:00:00.123456789Z stdout F [   12.961476] {line}",
    "editor": "4397 [   12.961476] {line}",
    "grep": "kern.log:4397:Nov  2 10:00:00 host kernel: [   12.961476] {line}",
}


FORMS = {"3.10": OWN_3_10, "4.15": PARENT_4_15, "5.1": OWN_5_1, "machine": MACHINE, "group": GROUP, "6.12": CAPTURED_6_12}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_prefixes(text, prefix):
    bare = [line.split("] ", 1)[1] for line in text.splitlines()]
    expected = [kill.to_dict() for kill in of("\n".join(bare))]
    found = [kill.to_dict() for kill in of("\n".join(prefix.format(line=line) for line in bare))]
    for kill in (*expected, *found):
        del kill["when"], kill["seconds"]
    assert found == expected


def test_kills_on_several_cpus():
    """Linux 3.10 does not make reports of two groups wait for each other."""
    other = (
        OWN_3_10.replace("java", "ruby")
        .replace("0a1b", "ffff")
        .replace("4300", "7300")
        .replace("4242", "7242")
        .replace("4400", "7400")
    )
    mixed = "\n".join(line for pair in zip(OWN_3_10.splitlines(), other.splitlines(), strict=True) for line in pair)
    first, second = of(mixed)
    assert [(kill.pid, kill.oom_memcg, kill.asker.pid) for kill in (first, second)] == [
        (4242, "/docker/0a1b", 4300),
        (7242, "/docker/ffff", 7300),
    ]


def test_kills_on_several_cpus_with_callers():
    other = MACHINE.replace("777", "888")
    named = [
        [f"[    1.5][ T{tid}] " + line.split("] ", 1)[1] for line in text.splitlines()]
        for tid, text in ((5, MACHINE), (6, other))
    ]
    named[1][-1] = named[1][-1].replace("anon-rss:916000kB", "anon-rss:1kB")
    told = of("\n".join(line for pair in zip(*named, strict=True) for line in pair))
    assert [(kill.pid, kill.cause, kill.anon_rss_bytes, len(kill.candidates)) for kill in told] == [
        (777, "machine", 916000 << 10, 2),
        (888, "machine", 1024, 2),
    ]


def test_a_line_broken_in_four():
    constraint = next(line for line in GROUP.splitlines() if "oom-kill:" in line)
    pieces = [constraint[at : at + 40] for at in range(0, len(constraint), 40)]
    (first, _) = of(GROUP.replace(constraint, "\n".join(pieces)))
    assert (first.cause, first.oom_memcg, first.pid) == ("own-limit", "/a", 51)


def test_names_with_blanks_and_brackets():
    text = (
        GROUP.replace("task=a,", "task=(sd-pam) x,")
        .replace("(a)", "((sd-pam) x)")
        .replace("[1.0] a invoked", "[1.0] (sd-pam) x invoked")
    )
    assert of(text)[0].name == "(sd-pam) x"
    assert of(text)[0].asker.name == "(sd-pam) x"


def test_groups_with_two_blanks_in_their_names():
    first, _ = of(GROUP.replace("=/a,", "=/a  b,"))
    assert (first.oom_memcg, first.task_memcg) == ("/a  b", "/a  b")
    old = only(OWN_3_10.replace("/docker/0a1b", "/docker  x/0a1b"))
    assert (old.oom_memcg, old.task_memcg, old.memory["anon"]) == ("/docker  x/0a1b", "/docker  x/0a1b", 524204 << 10)


@pytest.mark.parametrize("kib", [4, 16, 64])
def test_pages_are_told_by_what_no_limit_is(kib):
    """The largest number of whole pages, in kB."""
    none = ((1 << 63) - 1) // (kib << 10) * kib
    kill = of(GROUP.replace("[1.2]", f"[1.11] swap: usage 0kB, limit {none}kB, failcnt 0\n[1.2]"))[0]
    assert (kill.page_bytes, kill.swap_limit_bytes) == (kib << 10, None)


@pytest.mark.parametrize("kib", [4, 16, 64])
def test_pages_are_told_by_what_all_figures_are_multiples_of(kib):
    killed = f"total-vm:{kib * 4321}kB, anon-rss:{kib * 323}kB, file-rss:{kib * 11}kB, shmem-rss:{kib}kB"
    row = "[1.15] [     60]     7    60     1000      100    65536       10             0 other"
    head = "[1.14] [  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name"
    text = GROUP.replace("total-vm:4kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB", killed)
    kill = of(text.replace("[1.2]", f"{head}\n{row}\n[1.2]"))[0]
    assert (kill.page_bytes, kill.candidates[0].rss_bytes) == (kib << 10, 100 * kib << 10)
    few = of(GROUP.replace("total-vm:4kB, anon-rss:4kB", "total-vm:64kB, anon-rss:64kB"))[0]
    assert few.page_bytes == 4096, "two figures may be so by chance"


def test_a_log_that_begins_within_a_report():
    kill = only("".join(OWN_3_10.splitlines(keepends=True)[9:]))
    assert (kill.cause, kill.oom_memcg, len(kill.candidates), kill.order) == ("group-limit", "/docker/0a1b", 2, None)


def test_a_long_table():
    rows = "".join(
        f"[9.9] [{pid:7}]     0 {pid:5}     1000      {pid % 977}    4096        0             0 p{pid}\n"
        for pid in range(1000, 9000)
    )
    text = OWN_3_10.replace("[11000.100013]", f"{rows}[11000.100013]")
    kill = only(text)
    assert len(kill.candidates) + kill.candidates_left_out == 8002
    assert kill.candidates[0].pid == 4242
    assert kill.entrypoint == "unknown"


# ---- Anything ------------------------------------------------------------------------------------------------------


def damaged(draw: random.Random) -> str:
    """A log that is cut, mixed, doubled, and has other things in it."""
    lines = [line for _ in range(draw.randint(1, 3)) for line in draw.choice(ALL).splitlines()]
    for _ in range(draw.randint(0, 12)):
        at = draw.randrange(len(lines))
        kind = draw.randrange(6)
        if kind == 0:
            lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)]
        elif kind == 1:
            place = draw.randrange(len(lines[at]) + 1)
            lines[at] = (
                lines[at][:place]
                + draw.choice(["9" * 5000, "(", ")", "²", "\x00", "[", "=" * 50, " ", "-", ",pid=", "\udcff"])
                + lines[at][place:]
            )
        elif kind == 2:
            lines.insert(at, draw.choice(lines))
        elif kind == 3:
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 4 and len(lines) > 1:
            del lines[at]
        else:
            words = lines[at].split(" ")
            draw.shuffle(words)
            lines[at] = " ".join(words)
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(10))
def test_anything(seed):
    draw = random.Random(seed)
    for _ in range(50):
        for kill in of(damaged(draw)):
            assert kill.cause in CAUSES
            assert not (kill.cause == "machine" and kill.oom_memcg)
            assert json.loads(json.dumps(kill.to_dict()))["pid"] == kill.pid


def test_bytes_that_are_no_text():
    lines = [
        b"\xff\xfe invoked oom-killer: gfp_mask=0xd0, order=0",
        *(line.encode() + b"\r\n" for line in OWN_5_1.splitlines()),
    ]
    (kill,) = kills(lines)
    assert kill.cause == "own-limit"


def test_memory_stays():
    """However long the log: reports without an end, tables without an end, one line without an end."""
    reader = Reader()
    row = OWN_3_10.splitlines()[11]
    opening = OWN_3_10.splitlines()[0]
    for _ in range(20_000):
        reader.feed(row)
    tracemalloc.start()
    try:
        for at in range(20_000):
            reader.feed(row)
            if at % 50 == 0:
                reader.feed(opening)
                reader.feed(OWN_3_10.splitlines()[10])
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line",
    [
        "[1.1] name_that_nobody_knows_{} 5",
        "[1.1] Node {} Normal free:5kB min:5kB low:5kB high:5kB",
        "[1.1] Node {} Normal: 5*4kB (U) = 20kB",
        "[1.1] Memory cgroup stats for /a/{}: cache:0KB rss:0KB",
        "[1.1] Memory cgroup out of memory: Killed process {} (a) total-vm:4kB, anon-rss:4kB, UID:0 oom_score_adj:0",
    ],
    ids=["statistics", "zones", "blocks", "groups", "kills"],
)
def test_memory_stays_in_a_report_without_an_end(line):
    begin = "[1.0] a invoked oom-killer: order=0\n" + ("Memory cgroup stats for /a:" if "name" in line else "")
    if "Killed" in line:
        begin = "".join(GROUP.splitlines(keepends=True)[:5])
    reader = Reader()
    for opening in begin.splitlines():
        reader.feed(opening)
    for at in range(3000):
        reader.feed(line.format(at))
    tracemalloc.start()
    try:
        for at in range(3000, 13_000):
            reader.feed(line.format(at))
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
