# SPDX-License-Identifier: Apache-2.0
"""Readers beside a writer at full speed, over a ring so small that it is lapped all the time: no torn row, no miscounted loss.

What a row must be is known from the row itself. Ticks have their deadlines on one grid, and `late_ns` is how long after its
deadline a row was taken, so t_ns - late_ns lies on that grid: two columns of two different rows are off it but by luck of
one in 50,000. And t_ns grows with every row.
"""

from __future__ import annotations

import json
import time

import facts
import numpy as np
import pytest
from actor import until

from pymemcg import Sampler

pytestmark = pytest.mark.live

RATE_HZ = 20_000
HISTORY_S = 0.01
SECONDS = 2.0

# In each process: two threads that never wait, and one that comes so rarely that it is lapped. Each tells what it saw.
READERS = """
import threading
import numpy as np
from pymemcg import Sampler
s = Sampler({spec!r}, rate_hz={rate}, history_s={history}, adaptive=False).start()
period = s.usage.period_ns
report = []; failures = []
def whole(window, grid):
    t, late, usage = window["t_ns"], window["late_ns"], window["usage_bytes"]
    assert len(t) == len(late) == len(usage) == len(window)
    assert (np.diff(t) > 0).all(), "rows out of order"
    assert (late >= 0).all() and (usage >= 0).all()
    off = (t - late - grid) % period
    assert not off.any(), f"torn rows: {{off[off != 0][:5]}}"
def follow(pause, seconds, grid):
    try:
        w, first, _ = s.usage.read()
        cursor = first; seen = lost = windows = laps = last = 0; known = {{}}; end = time.monotonic() + seconds
        while time.monotonic() < end:
            w, after, n = s.usage.read(cursor)
            assert len(w) + n == after - cursor and n >= 0 and w.first_row == cursor + n, "miscounted"
            whole(w, grid)
            if len(w):
                assert int(w["t_ns"][0]) > last, "a row came twice"
                last = int(w["t_ns"][-1])
                known[after - 1] = last
            seen += len(w); lost += n; laps += n > 0; cursor = after
            live = s.usage.window()  # lent, not copied: it is whole if it is still good after it was looked at
            copies = [live[name].copy() for name in ("t_ns", "late_ns")]
            if live.valid():
                windows += 1
                assert not ((copies[0] - copies[1] - grid) % period).any(), "a torn lent window"
            time.sleep(pause)
        report.append({{"seen": seen, "lost": lost, "laps": laps, "windows": windows, "rows": cursor - first, "known": known}})
    except BaseException as error: failures.append(repr(error))
def run(pauses, seconds, grid):
    threads = [threading.Thread(target=follow, args=(pause, seconds, grid)) for pause in pauses]
    for t in threads: t.start()
    for t in threads: t.join()
"""


def test_no_torn_row_and_no_miscounted_loss(group, make_actor):
    with Sampler(group.spec, rate_hz=RATE_HZ, history_s=HISTORY_S, adaptive=False) as sampler:
        until(lambda: sampler.usage.head > 10)
        window = sampler.usage.read()[0]
        assert sampler.usage.capacity < 1000, "it is lapped within 50 ms"
        grid = int(window["t_ns"][-1] - window["late_ns"][-1])
        before, since = sampler.usage.head, time.monotonic()
        until(lambda: sampler.usage.head > before + sampler.usage.capacity)
        # Once three readers want the writer's only CPU, too, a lap takes four times as long.
        rarely = max(0.06, (8 if facts.MACHINE_IS_OURS else 2) * (time.monotonic() - since))
        actors = [make_actor() for _ in range(3)]
        for actor in actors:
            actor.do(READERS.format(spec=group.spec, rate=RATE_HZ, history=HISTORY_S))
            assert actor.do("s.role") == "attached"
        begun = sampler.usage.head
        for actor in actors:
            actor.send(f"run([0, 0.001, {rarely}], {max(SECONDS, 6 * rarely)}, {grid})")
        for actor in actors:
            actor.answer()
        laps = (sampler.usage.head - begun) / sampler.usage.capacity
        assert sampler.role == "sampling"
    assert [actor.do("failures") for actor in actors] == [[]] * 3
    reports = [json.loads(json.dumps(report)) for actor in actors for report in actor.do("report")]
    assert len(reports) == 9
    assert all(report["seen"] + report["lost"] == report["rows"] for report in reports)
    assert laps > (3 if facts.MACHINE_IS_OURS else 10), "the writer went round"
    assert sum(report["laps"] for report in reports) > (0 if facts.MACHINE_IS_OURS else 10), "and overtook somebody"
    assert sum(report["windows"] for report in reports) > 100
    # Whoever read row n, in whatever process, read the same row.
    times: dict[str, set[int]] = {}
    for report in reports:
        for row, t_ns in report["known"].items():
            times.setdefault(row, set()).add(t_ns)
    assert sum(len(found) == 1 for found in times.values()) == len(times)
    rows = np.array(sorted((int(row), *found) for row, found in times.items()))
    assert (np.diff(rows[:, 1]) > 0).all()


def test_rows_of_many_columns_are_whole_too(group, make_actor):
    """The keeper's channels: every row of `node` comes from one read of /proc/vmstat, whose counters only grow."""
    with Sampler(group.spec, rate_hz=RATE_HZ, stat_rate_hz=100, history_s=HISTORY_S, adaptive=False) as sampler:
        cursors = {"node": 0, "stat": 0, "processes": 0}
        make_actor(group)
        until(lambda: sampler.stat.head > 100)
        for name in cursors:
            window, cursor, lost = getattr(sampler, name).read(0)
            assert len(window) + lost == cursor
            assert (np.diff(window["t_ns"]) >= 0).all()
            assert {len(window[column]) for column in window} == {len(window)}
        window = sampler.node.read(0)[0]
        for column in ("pgmajfault", "pswpin", "pswpout"):
            assert (np.diff(window[column]) >= 0).all()
