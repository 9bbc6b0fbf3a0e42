# SPDX-License-Identifier: Apache-2.0
"""How long `pymemcg oom` takes over a log of 100 MB, beside reading its lines alone, and the memory that it takes.

Four logs: one with no kill, one of whose lines a hundredth are of kills, and two that no machine has: of kills alone, and of
kills with tables of 300 tasks alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIZE = 100_000_000
OTHERS = b"".join(
    b"[%6d.123456] systemd[1]: Started Session %d of user root, as lines of a log are.\n" % (n, n) for n in range(10_000)
)
REPORT = Path(__file__).parent.parent.joinpath("tests/data/6.12-v2/dmesg-oom.txt").read_bytes()
ROW = b"[   12.964201] [%7d]     0 %5d    51270    16206      312     1654     14240   446464     1664             0 python3\n"
LONG = re.sub(rb"(?=\[   12\.964201\])", b"".join(ROW % (pid, pid) for pid in range(1000, 1300)), REPORT)
KINDS = {"no kill": OTHERS, "a hundredth": OTHERS + REPORT, "kills alone": REPORT, "long tables alone": LONG}
MEASURE = """
import json, resource, sys, time
from pymemcg.oom import kills
from pymemcg.oom._logs import lines
def timed(work):
    begun = time.perf_counter()
    count = sum(1 for _ in work)
    return count, time.perf_counter() - begun
path = sys.argv[1]
_, alone = timed(lines(path, follow=False))
count, took = timed(kills(lines(path, follow=False)))
print(json.dumps([count, took, alone, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10]))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_of_100_mb(kind, tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        while file.tell() < SIZE:
            file.write(KINDS[kind])
    told = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True).stdout
    count, took, alone, resident_mib = json.loads(told)
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pymemcg", "oom", path], stdout=subprocess.DEVNULL, check=True)
    command_s = time.perf_counter() - begun
    print(
        f"\n{kind}: {count:,} kills in {took:.1f} s, {took / alone:.1f} times its lines alone; at most {resident_mib} MiB; "
        f"with all of them in words {command_s:.1f} s"
    )
    assert count == (0 if kind == "no kill" else pytest.approx(SIZE / len(KINDS[kind]), abs=1))
