# SPDX-License-Identifier: Apache-2.0
"""Reports without a browser: what of a recording is in the page, how its text is escaped, and where it is written."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from rowwriter import MS, T0, S, held, limits, ticks, write

import pymemcg
from pymemcg._ffi import NONE
from pymemcg.postmortem import postmortem
from pymemcg.report import html, tables, tracks
from pymemcg.report.downsample import floats, thin

MIB = 1 << 20
PYMEMCG = [sys.executable, "-m", "pymemcg"]
NOWHERE = np.empty((0, 2), np.int64)
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"


class Read(HTMLParser):
    """A page's text, by where it stands; elements and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag == "script":
            self._script = dict(attrs).get("id", "")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    @property
    def tracks(self):
        return json.loads(self.scripts["tracks"])["tracks"]


def unpacked(column):
    return np.frombuffer(base64.b64decode(column["float64"]), "<f8")


USAGE = {"usage": "memory.current"}


def info(**more):
    levels = [{"name": "/shop", "files": USAGE}, {"name": "/", "files": USAGE}]
    return {"target": {"directory": "/sys/fs/cgroup/shop", "levels": levels}, "evidence": {}} | more


def spans(*rows):
    """`spans` of one thread: (ms from T0, for how many ms, name_id)."""
    starts = [T0 + round(at * MS) for at, _, _ in rows]
    ends = [start + round(ms * MS) for start, (_, ms, _) in zip(starts, rows, strict=True)]
    same = {"tid": [7] * len(rows), "attribution": [1] * len(rows), "ran_start_ns": starts, "ran_end_ns": ends}
    return {"start_ns": starts, "end_ns": ends, "name_id": [name for *_, name in rows], "ref_id": list(range(len(rows)))} | same


@pytest.fixture
def stalled(tmp_path):
    """Two seconds of a group at its limit, with two stalls in one of which there was a span."""
    usage = ticks(2, hits=[500, 501, 1500])
    channels = {
        "usage": usage,
        "limits": limits((0, 0, 64, 0), (0, 1, 128, 0), (1000, 0, 72, 2)),
        "reclaim": held((500, 4, 7), (1500, 2, 7)),
        "spans": spans((498, 10, 0), (900, 5, 1)),
        "clock": {"t_ns": [T0], "realtime_ns": [1_700_000_000 * S]},
    }
    said = {"evidence": {"trace": None, "psi": "no PSI here"}, "absent": {"stat": "was not asked for"}, "host": "shop-1"}
    said["spans"] = {"pid": 7, "names": ["checkout", "search"], "refs": ["c1", "s1"]}
    return write(tmp_path / "stalled.memcg", channels, info(**said))


# ---- Which rows ----------------------------------------------------------------------------------------------------


def usage_of(recording, most, near_ns=NOWHERE):
    return thin(recording.usage, lambda _t, rows: {"usage": floats(rows["usage_bytes"])}, ["usage"], most=most, near_ns=near_ns)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """400,000 ticks of a walk, in which one row in the middle stands out by as much as the walk goes."""
    rows = ticks(400)
    walk = np.random.default_rng(1).integers(-50, 51, rows["t_ns"].size).cumsum() * 4096
    rows["usage_bytes"] = walk - walk.min() + 64 * MIB
    rows["usage_bytes"][200_123] = rows["usage_bytes"].max() + (walk.max() - walk.min())
    return write(tmp_path_factory.mktemp("noisy") / "noisy.memcg", {"usage": rows})


def test_what_fits_is_there_row_by_row(stalled):
    chosen = usage_of(stalled, 5000)
    window = stalled.usage.window()
    assert chosen.block == 1
    assert chosen.t_ns.tolist() == window["t_ns"].tolist()
    assert chosen.columns["usage"].tolist() == window["usage_bytes"].tolist()
    assert chosen.whole_ns.tolist() == [[window["t_ns"][0], window["t_ns"][-1]]]


def test_what_does_not_fit_keeps_the_least_and_the_most_of_every_block(noisy):
    window = noisy.usage.window()
    t_ns, values = window["t_ns"], window["usage_bytes"]
    chosen = usage_of(noisy, 10_000)
    assert chosen.rows == values.size
    assert values.size / chosen.block <= 2500
    assert chosen.t_ns.size <= 10_000 + chosen.block
    at = np.searchsorted(t_ns, chosen.t_ns)
    assert (np.diff(at) > 0).all()
    assert chosen.columns["usage"].tolist() == values[at].tolist(), "rows as they were, not means"
    for first in range(0, values.size, chosen.block):
        block = values[first : first + chosen.block]
        mine = values[at[(at >= first) & (at < first + chosen.block)]]
        assert (mine.min(), mine.max()) == (block.min(), block.max())


def test_a_spike_of_one_row_has_its_surroundings(noisy):
    t_ns = noisy.usage.window()["t_ns"]
    chosen = usage_of(noisy, 10_000)
    (within,) = [(a, b) for a, b in chosen.whole_ns.tolist() if a <= t_ns[200_123] <= b]
    first, last = np.searchsorted(t_ns, within)
    assert last - first + 1 >= chosen.block
    mine = chosen.t_ns[(chosen.t_ns >= within[0]) & (chosen.t_ns <= within[1])]
    assert mine.tolist() == t_ns[first : last + 1].tolist()


def test_every_row_is_there_around_the_longest_of_what_happened(noisy):
    t_ns = noisy.usage.window()["t_ns"]
    near = np.array([[T0 + 50 * S + i * S, T0 + 50 * S + i * S + (i + 1) * MS] for i in range(300)])
    chosen = usage_of(noisy, 10_000, near)
    a, b = near[-1]
    assert np.isin(t_ns[(t_ns >= a) & (t_ns <= b)], chosen.t_ns).all()
    assert chosen.t_ns.size <= 10_000 + 2 * chosen.block


def test_rows_without_a_value_are_gaps_and_never_0(tmp_path):
    rows = ticks(20)
    rows["usage_bytes"][3000:9000] = NONE
    chosen = usage_of(write(tmp_path / "gaps.memcg", {"usage": rows}), 400)
    within = (chosen.t_ns > T0 + 4 * S) & (chosen.t_ns < T0 + 8 * S)
    assert within.any()
    assert np.isnan(chosen.columns["usage"][within]).all()
    assert (chosen.columns["usage"][~np.isnan(chosen.columns["usage"])] == 64 * MIB).all()


def test_intervals_at_the_same_time_have_lanes_of_their_own():
    assert tracks.lanes([0, 0, 0, 1, 0], [0, 1, 2, 2, 11], [10, 9, 3, 4, 12], 2) == [0, 1, 1, 0, 0]


# ---- The page ------------------------------------------------------------------------------------------------------


def test_its_stalls_hits_and_limits_are_those_of_the_recording(stalled):
    page = Read(html(stalled))
    found = [stall for stall in stalled.stalls() if not stall.harmless]
    assert len(found) == 2
    drawn = page.tracks["stalls"]["columns"]
    offset = 1_700_000_000 * S - T0
    expected = sorted(((s.start_ns + offset) / 1e6, (s.end_ns + offset) / 1e6) for s in found)
    assert sorted(zip(unpacked(drawn["left"]), unpacked(drawn["right"]), strict=True)) == expected
    assert drawn["key"] == ["limit", "limit"]
    steps = page.tracks["limit-0"]["columns"]
    assert unpacked(steps["mib"]).tolist() == [64, 72, 72]
    assert unpacked(page.tracks["limit-1"]["columns"]["mib"]).tolist() == [128, 128]
    (hit,) = [hit for hit in stalled.hits() if hit.lost_ns]
    assert (hit.name, hit.ref, hit.lost_ns) == ("checkout", "c1", 4 * MS)
    said = ("checkout", "c1", "2 (limit 2), 6.0 ms in all", "64.0 MiB to 64.0 MiB of 72.0 MiB", "shop-1")
    for text in (*said, "no PSI here", "was not asked for", "2023-11-14 22:13:20.500"):
        assert text in page.text


def test_a_level_is_named_as_it_was_sampled(tmp_path):
    """One that lacks the file of its usage is not sampled, and has no number."""
    levels = [{"name": "/shop", "files": USAGE}, {"name": "/hidden", "files": {}}, {"name": "/", "files": USAGE}]
    where = {"directory": "/sys/fs/cgroup/shop", "levels": levels}
    channels = {"usage": ticks(1), "limits": limits((0, 0, 64, 0), (0, 1, 128, 0), (0, -1, 32, 0), (0, 2, 256, 0))}
    recording = write(tmp_path / "levels.memcg", channels, info(target=where))
    assert [(step.level, step.name) for step in tracks.limits(recording)] == [
        (-1, "level -1"),
        (0, "/shop"),
        (1, "/"),
        (2, "level 2"),
    ]
    assert [row[0] for row in tables.limit_table(recording).rows] == ["level -1", "/shop", "/", "level 2"]


@pytest.mark.parametrize("level", [5, None, {"name": 5}, {"name": "/shop", "files": 5}])
def test_levels_that_are_damaged(tmp_path, level):
    where = {"directory": "/sys/fs/cgroup/shop", "levels": [level]}
    recording = write(tmp_path / "damaged.memcg", {"usage": ticks(1), "limits": limits((0, 0, 64, 0))}, info(target=where))
    assert "target" in recording.missing["info"]
    assert "what the file says of target is damaged" in Read(html(recording)).text
    assert [limit.name for limit in postmortem(recording).limits] == [None]


def test_usage_is_there_to_the_byte(stalled):
    columns = Read(html(stalled)).tracks["usage"]["columns"]
    assert (unpacked(columns["usage"]) * MIB).tolist() == stalled.usage.window()["usage_bytes"].tolist()


@pytest.mark.parametrize("channels", [{"usage": ticks(0.1)}, {"usage": {"t_ns": ticks(0.1)["t_ns"]}}], ids=["usage", "times"])
def test_what_there_is_not_is_left_out(tmp_path, channels):
    page = Read(html(write(tmp_path / "little.memcg", channels, {})))
    assert not {"memory", "rates", "pressure", "spans"} & (page.tracks.keys() if page.scripts else set())
    assert "pressure" in page.text[page.text.index("What was absent") :]


def test_a_recording_without_rows_is_an_error(tmp_path):
    empty = write(tmp_path / "empty.memcg", {"usage": {name: [] for name in ticks(0.1)}}, {})
    with pytest.raises(pymemcg.RecordingError, match="no rows"):
        html(empty)


def test_text_from_outside_is_text(tmp_path):
    said = {"pid": 7, "names": [HOSTILE], "refs": [HOSTILE]}
    where = {
        "directory": f"/{HOSTILE}",
        "levels": [{"name": f"/{HOSTILE}", "files": USAGE}],
        "spec": HOSTILE,
        "layout": HOSTILE,
    }
    channels = {
        "usage": ticks(1),
        "limits": limits((0, 0, 64, 0), (0, 1, 128, 0)),
        "reclaim": held((500, 4, 7)),
        "spans": spans((498, 10, 0)),
    }
    evidence = {"trace": None, HOSTILE: HOSTILE}
    said = info(target=where, host=HOSTILE, kernel=HOSTILE, absent={HOSTILE: HOSTILE}, spans=said, evidence=evidence)
    recording = write(tmp_path / f"{HOSTILE.replace('/', '')}.memcg", channels, said)
    page = Read(html(recording))
    assert "img" not in page.elements
    assert page.elements.count("script") == 5
    assert page.text.count(HOSTILE) >= 12
    assert page.tracks["spans"]["columns"]["about"][0].startswith(HOSTILE)


def test_about_as_many_hits_as_wanted_and_those_that_lost_most(tmp_path):
    rows = [(10 * i, 5, 0) for i in range(150)]
    said = info(spans={"pid": 7, "names": ["a"], "refs": []}, evidence={"trace": None})
    reclaim = held(*((10 * i + 1, 0.02 * (i + 1), 7) for i in range(150)))
    recording = write(tmp_path / "hits.memcg", {"usage": ticks(2), "spans": spans(*rows), "reclaim": reclaim}, said)
    hits = recording.hits()
    assert len(hits) == 150
    worst = tables.worst_hits(hits, 100)
    assert 50 <= len(worst) <= 100
    lost = sorted((hit.lost_ns for hit in hits), reverse=True)
    assert [hit.lost_ns for hit in worst] == lost[: len(worst)]


# ---- The command ---------------------------------------------------------------------------------------------------


def run(*words, **options):
    return subprocess.run([*PYMEMCG, "report", *words], capture_output=True, timeout=120, check=False, **options)


def test_stdout_and_a_file_get_the_same_page(stalled, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    done = run(stalled.path, "-o", str(out / "report.html"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert os.listdir(out) == ["report.html"]
    printed = run(stalled.path, "-o", "-")
    ids = re.compile(rb'"(?:id|root_id|target_id)":"[^"]*"')  # bokeh's, new each time
    assert ids.sub(b"", printed.stdout) == ids.sub(b"", (out / "report.html").read_bytes())


def test_a_path_that_is_no_utf_8(tmp_path):
    name = b"caf\xe9.memcg"
    write(tmp_path / os.fsdecode(name), {"usage": ticks(0.1)}, {})
    done = run(os.fsdecode(name), "-o", "-", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"caf\udce9.memcg" in done.stdout


@pytest.mark.parametrize("output", ["missing/report.html", "folder", "/dev/full/x"])
def test_an_output_that_cannot_be_written_is_named_and_nothing_is_left(stalled, tmp_path, output):
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    done = run(stalled.path, "-o", output, cwd=tmp_path)
    assert done.returncode == 1
    assert output in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_what_is_no_recording_leaves_the_last_report(tmp_path):
    (tmp_path / "report.html").write_text("the last one")
    (tmp_path / "no.memcg").write_text("no recording")
    done = run("no.memcg", "-o", "report.html", cwd=tmp_path)
    assert done.returncode == pymemcg.RecordingError.exit_code
    assert (tmp_path / "report.html").read_text() == "the last one"
    assert sorted(os.listdir(tmp_path)) == ["no.memcg", "report.html"]


@pytest.mark.parametrize("missing", ["bokeh", "tsdownsample", "jinja2"])
def test_without_the_extra_it_says_what_to_install(stalled, tmp_path, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from pymemcg.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "report", stalled.path, "-o", "report.html"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == pymemcg.NotSupported.exit_code
    assert "pip install 'pymemcg[report]'" in done.stderr
    assert not (tmp_path / "report.html").exists()
