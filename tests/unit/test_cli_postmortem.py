# SPDX-License-Identifier: Apache-2.0
"""`pymemcg postmortem`: text, JSON and a page, of rings, of recordings and of what is damaged."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rowwriter
from rowwriter import MS, T0

from pymemcg._ffi import ffi
from pymemcg.cli import main

MIB = 1 << 20
BELL = "gone\x1b]0;owned\x07"
EVIL = '/pod/<script>alert("1")</script>&amp;'


@pytest.fixture
def path(tmp_path):
    """The ring of a sampler that was killed at its limit, in a group whose name is markup."""
    path = tmp_path / "app.ring.1"
    rows = rowwriter.ticks(5, hits=range(4_000, 5_000, 10))
    rows["usage_bytes"] = np.append(np.full(4_000, 20 * MIB), np.linspace(20 * MIB, 64 * MIB, 1000).astype(np.int64))
    levels = [{"name": EVIL, "directory": f"/sys/fs/cgroup{EVIL}", "files": {"usage": "memory.current"}}]
    info = {
        "target": {"directory": f"/sys/fs/cgroup{EVIL}", "levels": levels},
        "host": "elsewhere",
        "absent": {"high": "no <memory.high>", "stat": BELL},
    }
    channels = {"usage": rows, "limits": rowwriter.limits((0, 0, 64, 0)), "reclaim": rowwriter.held((4_900, 30, 9))}
    rowwriter.write(path, channels, info)
    with open(path, "r+b") as file:
        for word, value in (("writer_pid", 4711), ("writer_started_ns", T0), ("period_ns", MS)):
            at = ffi.offsetof("struct memcg_ring_header", "state") + ffi.offsetof("struct memcg_state", word)
            os.pwrite(file.fileno(), np.uint64(value).tobytes(), at)
    return str(path)


def test_in_words(path, capsys):
    assert main(["postmortem", path]) == 0
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert said.startswith("verdict Probably the OOM killer ended it: usage was at the limit of")
    assert "64.0 MiB of 64.0 MiB (100 %), 0 B left" in said
    assert "+44.0 MiB/s over 1 s, at the limit" in said
    assert "stalls 1 (limit 1), 30.0 ms in all, the worst 30.0 ms; 1 in the last second" in said
    assert "spans there was no room for them" in said, "hits are not known, which is not none"
    assert "absent high: no <memory.high>" in said
    assert "anon –, file –" in said, "what is not known is no 0"
    assert r"absent stat: gone\x1b]0;owned\x07" in said, "it is not the terminal that is told"
    assert out.replace("\n", "").isprintable()
    last = out[out.index("The last second") :].splitlines()
    assert len(last[2:12]) == 10
    assert last[11].split()[:3] == ["100", "ms", "64.0"]
    assert "held: 9" in out


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (
            os.uname().nodename,
            "Perhaps it ended with the machine: another kernel runs now: the machine was started anew since, ",
        ),
        ("elsewhere", "Probably not the OOM killer but something else ended it"),
    ],
)
def test_another_boot_of_a_machine_of_the_same_name(path, capsys, host, says):
    """Which may be another machine: there are many called `localhost`."""
    rowwriter.write(path, {"usage": rowwriter.ticks(5), "limits": rowwriter.limits((0, 0, 640, 0))}, {"host": host})
    with open(path, "r+b") as file:
        for word, value in (("writer_pid", 4711), ("writer_started_ns", T0)):
            at = ffi.offsetof("struct memcg_ring_header", "state") + ffi.offsetof("struct memcg_state", word)
            os.pwrite(file.fileno(), np.uint64(value).tobytes(), at)
        os.pwrite(file.fileno(), b"another", ffi.offsetof("struct memcg_ring_header", "boot_id"))
    assert main(["postmortem", path]) == 0
    assert says in " ".join(capsys.readouterr().out.split())


def test_json(path, capsys):
    assert main(["postmortem", "--json", path]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ending"]["how"] == "oom"
    assert told["ending"]["certainty"] == "likely"
    assert told["anon"] is None
    assert len(told["steps"]) == 10


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_without_scripts_links_or_markup_from_outside(path, tmp_path, capsys):
    assert main(["postmortem", path, "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == ""
    text = (tmp_path / "page.html").read_text()
    page = _Page(text)
    assert "script" not in page.tags
    assert page.links == []
    assert any(EVIL in data for data in page.texts)
    assert not re.search(r"url\(|@import|https?:", text)
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    points = [tuple(map(float, pair.split(","))) for pair in svg.find("polyline").get("points").split()]
    limit = float(svg.find("line").get("y1"))
    assert all(0 <= x <= 800 and 0 <= y <= 160 for x, y in points)
    assert points[-1][1] == pytest.approx(limit, abs=0.5), "it ends at the limit"
    assert points[0][1] == pytest.approx(160 * (1 - 20 / (1.05 * 64)), abs=0.2)
    assert svg.find("rect").get("class") == "stall"


def test_the_page_says_that_nothing_may_run_or_be_loaded(path, tmp_path):
    assert main(["postmortem", path, "--html", str(tmp_path / "page.html")]) == 0
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', (tmp_path / "page.html").read_text())
    assert policy[1] == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_of_a_group_whose_name_is_no_utf_8(path, tmp_path):
    levels = [{"name": "/\udce4", "directory": "/sys/fs/cgroup/\udce4", "files": {"usage": "memory.current"}}]
    info = {"target": {"directory": "/sys/fs/cgroup/\udce4", "levels": levels}}
    rowwriter.write(path, {"usage": rowwriter.ticks(5), "limits": rowwriter.limits((0, 0, 64, 0))}, info)
    assert main(["postmortem", path, "--html", str(tmp_path / "page.html")]) == 0
    assert r"/sys/fs/cgroup/\udce4" in (tmp_path / "page.html").read_text()


def test_a_page_is_replaced_when_the_new_one_is_whole(path, tmp_path):
    """Who reads the old one meanwhile has all of it."""
    (tmp_path / "page.html").write_text("old")
    os.link(tmp_path / "page.html", tmp_path / "read")
    assert main(["postmortem", path, "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "read").read_text() == "old"
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE")
    assert sorted(p.name for p in tmp_path.glob("*page*")) == ["page.html"]


def test_the_page_cannot_be_written(path, tmp_path, capsys):
    assert main(["postmortem", path, "--html", str(tmp_path / "no" / "page.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_what_is_damaged_is_told_and_the_rest_is_used(path, capsys):
    with open(path, "r+b") as file:
        file.truncate(os.fstat(file.fileno()).st_size - 65_536)
    assert main(["postmortem", path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "missing file: it was cut" in said
    assert "missing reclaim: the file ends before 1 of its 7 columns" in said
    assert "Probably the OOM killer" in said


def test_the_stalls_of_what_is_damaged_come_with_a_note(path, capsys):
    assert main(["stalls", "--json", path]) == 0
    whole = capsys.readouterr()
    assert len(whole.out.splitlines()) == 1
    assert whole.err == ""
    with open(path, "r+b") as file:
        file.truncate(os.fstat(file.fileno()).st_size - 65_536)
    assert main(["stalls", "--json", path]) == 0
    rest = capsys.readouterr()
    assert {tuple(json.loads(line)["evidence"]) for line in rest.out.splitlines()} == {("counters",)}
    assert "is damaged: reclaim: the file ends before 1 of its 7 columns" in rest.err


@pytest.mark.parametrize("data", [b"", b"no ring at all" * 100, bytes(100_000)])
def test_what_is_no_ring(data, tmp_path, capsys):
    (tmp_path / "file").write_bytes(data)
    assert main(["postmortem", str(tmp_path / "file")]) == 6
    assert f"pymemcg: {tmp_path / 'file'}" in capsys.readouterr().err


def test_there_is_no_such_file(tmp_path, capsys):
    assert main(["postmortem", str(tmp_path / "nothing")]) == 6
    assert "No such file" in capsys.readouterr().err
