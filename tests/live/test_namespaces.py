# SPDX-License-Identifier: Apache-2.0
"""Processes that see themselves, and the group, through another namespace than the sampler's files."""

from __future__ import annotations

import json

import pytest
from actor import NAMESPACES, Failed

pytestmark = pytest.mark.live

# What is sampled is the child's own memory, so it has some that no other process has.
IN_THE_CHILD = """
import json, os
from pymemcg import Sampler
ballast = bytearray(b"x") * (96 << 20)
with Sampler(history_s=1) as s:
    row = s.usage.window(rows=1)
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    told = {"pid": os.getpid(), "seen_as": os.readlink("/proc/self"), "rss": int(row["rss_bytes"][0]), "now": now}
    told |= {"names": list(s.processes.names), "rows": s.processes.head, "absent": s.absent.get("processes"), "role": s.role}
print(json.dumps(told))
"""


def test_a_proc_of_another_pid_namespace(group, make_actor):
    """As after `unshare --pid --fork`: pid 1, whose number in /proc is another, where 1 is the machine's init."""
    actor = make_actor(group)
    actor.do(NAMESPACES)
    try:
        actor.do("system('unshare', 0x20000000)")  # CLONE_NEWPID: for the children
    except Failed as failed:
        pytest.skip(f"no pid namespace may be made here: {failed}")
    actor.do("import subprocess")
    command = f"[sys.executable, '-c', {IN_THE_CHILD!r}]"
    told = json.loads(actor.do(f"subprocess.run({command}, capture_output=True, text=True, check=True).stdout"))
    assert told["role"] == "sampling"
    assert told["seen_as"] != str(told["pid"]) == "1"
    assert abs(told["now"] - told["rss"]) < 48 << 20
    assert (told["names"], told["rows"]) == ([], 0), "pids of one namespace are looked up in another"
    assert "pid namespace" in told["absent"]
