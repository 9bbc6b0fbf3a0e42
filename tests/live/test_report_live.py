# SPDX-License-Identifier: Apache-2.0
"""A report of a service that really was short of memory: its stalls, spans and limits are in the page that a browser shows."""

from __future__ import annotations

import os
import subprocess
import sys

import facts
import pytest
from browsing import Opened, browser

import pymemcg

pytestmark = pytest.mark.live

MIB = 1 << 20
LIMIT = 80 * MIB
ABOVE = 200 * MIB
# A request needs more anonymous memory than fits: room is made by dropping the page cache of a file, and by swap. Reclaim of
# clean pages alone holds nobody for a millisecond on a fast machine.
SERVICE = """
from pymemcg import Sampler
from pymemcg.recorder import Recorder
file = os.open({data!r}, os.O_RDONLY)
def serve(times):
    for i in range(times):
        with s.span("read", ref=i):
            os.lseek(file, 0, os.SEEK_SET)
            while os.read(file, 1 << 20): pass
        with s.span("</script><b>allocate</b>", ref=f"<i>{{i}}</i>"):
            kept = b"x" * (100 << 20)
            del kept
s = Sampler().start()
recorder = Recorder(s, {path!r})
serve(6)
time.sleep(0.3)
recorder.close()
s.stop()
"""


@pytest.fixture
def recorded(make_group, make_actor, scratch, swap, tmp_path) -> pymemcg.Recording:
    data, path = scratch / "data", tmp_path / "service.memcg"
    with open(data, "wb") as file:
        file.writelines(os.urandom(MIB) for _ in range(96))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # its pages are charged to who reads them
    parent = make_group("above", limit_bytes=ABOVE)
    actor = make_actor(parent.child("service", limit_bytes=LIMIT))
    actor.do(SERVICE.format(data=str(data), path=str(path)))
    return pymemcg.open(path)


def test_a_report_shows_what_held_a_real_service_up(recorded, tmp_path):
    page = tmp_path / "report.html"
    words = [sys.executable, "-m", "pymemcg", "report", recorded.path, "-o", str(page)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=facts.PATIENCE_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    stalls = [stall for stall in recorded.stalls() if not stall.harmless]
    assert stalls
    with browser() as chromium:
        opened = Opened(chromium, page).drawn()
        text = opened.page.inner_text("body")
        drawn = opened.rows("stalls")
        assert sorted(key for key in drawn["key"] if key != "harmless") == sorted(stall.cause for stall in stalls)
        assert opened.rows("limit-0")["mib"] == [LIMIT / MIB] * 2
        assert opened.rows("limit-1")["mib"] == [ABOVE / MIB] * 2
        window = recorded.usage.window()
        assert max(opened.rows("usage")["usage"]) * MIB == window["usage_bytes"].max()
        assert {"read", "</script><b>allocate</b>"} <= {row.split("\t")[0] for row in text.splitlines()}
        assert len(opened.rows("spans")["left"]) == 12
        for what in recorded.info["absent"]:
            assert f"{what}\t" in text
        assert recorded.info["kernel"] in text
        longest = max(stalls, key=lambda stall: stall.stall_ns or 0)
        middle = recorded.usage.realtime_ns(window["t_ns"])[0] / 1e6 + (longest.start_ns - int(window["t_ns"][0])) / 1e6
        opened.show(middle - 5, middle + 5)
        times = opened.rows("usage")["t"]
        inside = (window["t_ns"] >= longest.start_ns - 5_000_000) & (window["t_ns"] <= longest.start_ns + 5_000_000)
        assert abs(sum(middle - 5 <= t <= middle + 5 for t in times) - int(inside.sum())) <= 1
        assert (opened.said, opened.asked) == ([], [])
        opened.close()
