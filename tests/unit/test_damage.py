# SPDX-License-Identifier: Apache-2.0
"""Damaged files: what can be read of them is shown in order, what cannot is told, and nothing else happens.

The files are real: a ring that a killed sampler left, a recording of a sampler with spans, and the intervals of tests/data.
`PYMEMCG_FUZZ=50000` tries so many damages each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import rowwriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rowwriter import MS, T0

import pymemcg
from pymemcg import NotSupported, RecordingError, Sampler, schema
from pymemcg._ffi import NONE, ffi
from pymemcg.cli import main
from pymemcg.postmortem import postmortem
from pymemcg.recorder import Recorder
from pymemcg.ring import RECORDING_ALIGN, Ring

TRIES = int(os.environ.get("PYMEMCG_FUZZ", "60"))
MOST_SECONDS = 20
"""That one damaged file may take in all; a whole one takes a tenth of a second."""
FUZZED = settings(
    max_examples=TRIES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

SAMPLE = """
import sys, pymemcg
sampler = pymemcg.Sampler("self", rate_hz=2000, history_s=1, adaptive=False, ring_file=sys.argv[1]).start()
for number in range(300):
    with sampler.span(f"name {number % 7}", ref=(None, number, f"ref {number}", "x" * 60)[number % 4]):
        pass
while sampler.usage.head < sampler.usage.capacity + 100:
    held = bytearray(1 << 20)
print("sampled", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def killed(folder) -> Path:
    """The ring file of a sampler with spans that has been round and was then killed."""
    with tempfile.TemporaryDirectory(prefix="pymemcg-", dir="/dev/shm") as memory:
        ring = f"{memory}/ring"
        process = subprocess.Popen(
            [sys.executable, "-c", SAMPLE, ring], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout.readline() == "sampled\n"
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        shutil.copyfile(ring, folder / "killed")
    recording = pymemcg.open(folder / "killed")
    assert recording.is_ring
    assert recording.spans.head == 300
    return folder / "killed"


@pytest.fixture(scope="module")
def recorded(folder) -> Path:
    """A recording of a sampler, with spans."""
    path = folder / "recorded"
    with Sampler(rate_hz=1000) as sampler, Recorder(sampler, path):
        for number in range(300):
            with sampler.span("work" if number % 3 else "rest", ref=f"n{number}"):
                time.sleep(0.001)
    return path


@pytest.fixture(scope="module")
def stalled(folder) -> Path:
    """Hits, pressure and reclaim as tests/data has them, with spans over them."""
    with np.load(Path(__file__).parents[1] / "data" / "stalls" / "threads.npz") as data:
        whole = {name: np.cumsum(data[name].astype(np.int64)) for name in data.files}
    tick = rowwriter.ticks(10)
    hits = np.append(0, np.cumsum(whole["hits"]))
    tick["limit_hits"] = hits[np.searchsorted(T0 + whole["t_ns"], tick["t_ns"], side="right")]
    start, end = (T0 + 1000 * whole[name] for name in ("start_us", "end_us"))
    order = np.argsort(end, kind="stable")
    reclaim = {
        "start_ns": start[order],
        "end_ns": end[order],
        "pid": np.full(order.size, 7),
        "tid": whole["tid"][order],
        "kind": np.full(order.size, 1),
        "reclaimed_pages": np.full(order.size, 32),
        "cpu_wait_ns": np.zeros(order.size),
    }
    pressure = {
        "t_ns": T0 + whole["window_t_ns"],
        "since_ns": T0 + whole["window_since_ns"],
        "some_us": np.cumsum(whole["window_some_us"]),
        "full_us": np.cumsum(whole["window_full_us"]),
    }
    begin = T0 + np.arange(0, 9000, 20) * MS
    spans = {
        "start_ns": begin,
        "end_ns": begin + 30 * MS,
        "tid": np.full(begin.size, int(whole["tid"][0])),
        "name_id": np.arange(begin.size) % 2,
        "ref_id": np.arange(begin.size) % 3,
        "attribution": 1 + np.arange(begin.size) % 3,
        "ran_start_ns": begin + MS,
        "ran_end_ns": begin + 29 * MS,
    }
    channels = {
        "usage": tick,
        "pressure": pressure,
        "reclaim": reclaim,
        "spans": spans,
        "limits": rowwriter.limits((0, 0, 64, 0), (0, 1, 128, 0), (5000, 1, 96, 40)),
        "node": rowwriter.node(10, allocstall_normal=[3000], pswpin=[100, 200]),
        "events": {"t_ns": [T0 + 1, T0 + MS], "since_ns": [T0, T0], "kind": [1, 6], "value": [7, 100]},
        "clock": {"t_ns": [T0, T0 + MS], "realtime_ns": [10**18, 10**18 + MS]},
    }
    said = {"pid": 7, "names": ["one", "two"], "refs": ["a", 5, None]}
    info = {"evidence": {"trace": None, "psi": None, "counters": None}, "spans": said, "page_bytes": 4096}
    rowwriter.write(folder / "stalled", channels, info)
    return folder / "stalled"


FILES = ("killed", "recorded", "stalled")


@pytest.fixture(scope="module")
def whole(killed, recorded, stalled) -> dict[str, bytes]:
    """The files as bytes; of each a smaller part is tables than is damaged, so places in them are known."""
    return {name: path.read_bytes() for name, path in zip(FILES, (killed, recorded, stalled), strict=True)}


@pytest.fixture(scope="module")
def places(whole, folder) -> dict[str, list[tuple[int, int]]]:
    """From where to where header, tables, info, and each column are."""
    found = {}
    for name in FILES:
        with open(folder / name, "rb") as file:
            ring = Ring(file.fileno(), name)
        header = ring.header
        found[name] = [
            (0, ffi.sizeof("struct memcg_ring_header")),
            (header.channels_offset, header.columns_offset),
            (header.columns_offset, header.info_offset),
            (header.info_offset, header.info_offset + header.info_bytes),
        ]
        for table in ring.tables.values():
            rows = min(table.capacity, ring.head(table))
            found[name] += [(at, at + 8 * rows) for at in table.offsets.values() if rows]
    return found


def opened(data: bytes, path: Path) -> pymemcg.Recording | None:
    """The recording in these bytes, or None where it was refused with a reason."""
    path.write_bytes(data)
    try:
        return pymemcg.open(path)
    except RecordingError as error:
        refused = str(error)
    assert str(path) in refused
    assert len(refused) < 1000
    return None


def use(recording: pymemcg.Recording) -> None:
    """Do everything that can be done with a recording."""
    begun = time.monotonic()
    for name, why in recording.missing.items():
        assert name
        assert why
    for name in schema.CHANNELS:
        channel = getattr(recording, name)
        window = channel.window()
        assert len(window) == channel.head <= max(1, channel.capacity)
        assert window.valid()
        assert len(channel.window(seconds=1)) <= len(window)
        assert len(channel.window(rows=3)) <= 3
        if "t_ns" in window:
            times = window["t_ns"]
            assert (times[1:] >= times[:-1]).all(), f"{name} is not in order"
            assert times.size == 0 or 0 < times[0] <= times[-1] < NONE
        assert channel.to_numpy().size == len(window)
        assert channel.read(None)[2] == 0
        if len(window) and "t_ns" in window:
            channel.realtime_ns(window["t_ns"])
        repr(channel.closed)
        channel.forget(channel.head)
        assert all(np.array_equal(window[column], channel.window()[column]) for column in window)
    recording.stalls(evidence="counters")
    for hit in recording.hits():
        hit.to_dict()
    recording.summary()
    told = postmortem(recording, oom_kills_now=1, boot_id="another")
    json.dumps(told.to_dict(), allow_nan=False)
    assert told.verdict
    assert "\n" not in told.line()
    assert time.monotonic() - begun < MOST_SECONDS


WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from((0, 1, NONE, 2**62, 2**63, 2**64 - 1, 2**40)))


@st.composite
def damages(draw, size: int, places: list[tuple[int, int]]):
    """What happens to the bytes of a file: a list of (kind, where, how much)."""
    in_rows = draw(st.booleans())
    kinds = ("flip", "flip", "zero", "noise", "word") if in_rows else ("flip", "flip", "zero", "noise", "word", "cut", "grow")
    made = []
    for _ in range(draw(st.integers(1, 30 if in_rows else 4))):
        kind = draw(st.sampled_from(kinds))
        begin, end = draw(st.sampled_from(places[4:] if in_rows else [*places[:4] * 3, *places[4:]]))
        at = draw(st.integers(begin, max(begin, end - 1))) if kind != "cut" else draw(st.integers(0, size))
        length = draw(st.sampled_from((1, 8, 64, 4096, 65536)))
        if kind in ("zero", "noise") and draw(st.booleans()):
            at -= at % 4096
        made.append((kind, at, draw(st.integers(0, 7)) if kind == "flip" else length, draw(WORDS)))
    return made


def damaged(data: bytes, made) -> bytes:
    out = bytearray(data)
    for kind, at, how, word in made:
        if kind == "flip" and at < len(out):
            out[at] ^= 1 << how
        elif kind == "zero":
            out[at : at + how] = bytes(len(out[at : at + how]))
        elif kind == "noise":
            noise = np.random.default_rng(word).bytes(len(out[at : at + how]))
            out[at : at + how] = noise
        elif kind == "word":
            whole = slice(at - at % 8, at - at % 8 + 8)
            out[whole] = word.to_bytes(8, "little")[: len(out[whole])]
        elif kind == "cut":
            del out[at:]
        elif kind == "grow":
            out += bytes(how)
    return bytes(out)


@pytest.mark.parametrize("name", FILES)
class TestAnyDamage:
    def test_the_whole_file_says_that_nothing_is_missing(self, name, whole, tmp_path):
        recording = opened(whole[name], tmp_path / name)
        assert recording.missing == {}
        use(recording)

    @FUZZED
    @given(data=st.data())
    def test_it_is_refused_with_a_reason_or_all_that_is_left_can_be_used(self, name, whole, places, tmp_path, data):
        made = data.draw(damages(len(whole[name]), places[name]))
        recording = opened(damaged(whole[name], made), tmp_path / name)
        if recording is not None:
            use(recording)

    def test_every_length(self, name, whole, places, tmp_path):
        """What ends in the tables is refused; after them each column that is whole is there, with all its rows."""
        complete = opened(whole[name], tmp_path / "whole")
        tables_end = places[name][2][1]
        for length in sorted(
            {0, 1, 7, 8, 100, 407, 408, tables_end - 1, *(at + d for at, _ in places[name][3:] for d in (0, 1))}
        ):
            recording = opened(whole[name][:length], tmp_path / name)
            assert (recording is None) == (length < tables_end), length
            if recording is None:
                continue
            assert "file" in recording.missing
            assert recording.header.file_bytes == len(whole[name])
            for channel in schema.CHANNELS:
                left, before = getattr(recording, channel), getattr(complete, channel)
                assert left.head in (0, before.head)
                assert set(left.names) <= set(before.names)
                assert (set(left.names) == set(before.names)) == (channel not in recording.missing)
                for column in left.names:
                    assert np.array_equal(left.window()[column], before.window()[column])

    def test_each_bit_of_header_and_tables(self, name, whole, places, tmp_path):
        """A flip in header or tables is refused, or noted, or is none of what says where rows are."""
        complete = opened(whole[name], tmp_path / "whole")
        rng = np.random.default_rng(1)
        end = places[name][2][1]
        for at in sorted(rng.choice(end, 150, replace=False).tolist()):
            data = bytearray(whole[name])
            data[at] ^= 1 << int(rng.integers(8))
            recording = opened(bytes(data), tmp_path / name)
            if recording is None:
                assert at < end
                continue
            usage = recording.usage.window()
            if recording.usage.head == complete.usage.head and "usage_bytes" in usage and not recording.missing:
                assert np.array_equal(usage["usage_bytes"], complete.usage.window()["usage_bytes"])


def test_each_byte_of_what_says_where_spans_are(killed, tmp_path):
    """The highest bit of each: sizes, places and numbers of rows that nobody has."""
    path = tmp_path / "flipped"
    shutil.copyfile(killed, path)
    with open(path, "r+b", buffering=0) as file:
        ring = Ring(file.fileno(), str(path))
        entry = ffi.sizeof("struct memcg_channel_header")
        for name in ("spans", "names"):
            begin = ring.header.channels_offset + ring.tables[name].index * entry
            for at in range(begin, begin + entry):
                (byte,) = os.pread(file.fileno(), 1, at)
                os.pwrite(file.fileno(), bytes([byte ^ 0x80]), at)
                recording = pymemcg.open(path)
                assert all(recording.missing.values())
                assert len(recording.hits()) >= 0
                assert recording.summary() is not None
                assert recording.usage.head > 0
                os.pwrite(file.fileno(), bytes([byte]), at)


class TestWhatIsLeft:
    def column(self, path: Path, channel: str, name: str) -> tuple[int, int]:
        with open(path, "rb") as file:
            ring = Ring(file.fileno(), str(path))
        table = ring.tables[channel]
        return table.offsets[name], min(table.capacity, ring.head(table))

    def entry(self, path: Path, channel: str, word: str) -> int:
        with open(path, "rb") as file:
            ring = Ring(file.fileno(), str(path))
        kind = ffi.typeof("struct memcg_channel_header")
        return ring.header.channels_offset + ring.tables[channel].index * ffi.sizeof(kind) + ffi.offsetof(kind, word)

    def test_a_zeroed_page_of_times_costs_its_rows_and_no_others(self, stalled, tmp_path):
        complete = pymemcg.open(stalled)
        at, rows = self.column(stalled, "usage", "t_ns")
        data = bytearray(stalled.read_bytes())
        data[at + 4096 : at + 8192] = bytes(4096)
        recording = opened(bytes(data), tmp_path / "zeroed")
        kept = np.delete(np.arange(rows), np.arange(512, 1024))
        for name in ("t_ns", "limit_hits"):
            assert np.array_equal(recording.usage.window()[name], complete.usage.window()[name][kept])
        assert recording.missing["usage"].startswith(f"512 of {rows} rows are left out")
        assert set(recording.missing) == {"usage"}
        assert not recording.usage.window()["t_ns"].flags.writeable

    @pytest.mark.parametrize("row", [2, 700, 9997])
    @pytest.mark.parametrize("bit", [21, 36, 50, 62, 63])
    def test_a_flipped_time_costs_one_row(self, stalled, tmp_path, row, bit):
        complete = pymemcg.open(stalled).usage.window()["t_ns"]
        at, rows = self.column(stalled, "usage", "t_ns")
        data = bytearray(stalled.read_bytes())
        value = int(complete[row]) ^ (1 << bit)
        data[at + 8 * row : at + 8 * row + 8] = value.to_bytes(8, "little")
        times = opened(bytes(data), tmp_path / "flipped").usage.window()["t_ns"]
        assert rows - 2 <= times.size < rows, "by 2 ms it is as wrong as one of the rows beside it"
        assert times.size == rows - 1 or bit == 21
        assert np.isin(times, complete).all()

    @pytest.mark.parametrize("command", ["stalls {}", "export {} --to csv --channel usage -o -", "report {} -o {}.html"])
    def test_commands_tell_of_it(self, command, stalled, tmp_path, capfd):
        path = tmp_path / "cut.memcg"
        path.write_bytes(stalled.read_bytes()[:-70_000])
        missing = pymemcg.open(path).missing
        assert main([word.format(path) for word in command.split()]) == 0
        said = capfd.readouterr().err
        for name, why in missing.items():
            assert f"pymemcg: {path} is damaged: {name}: {why}\n" in said
        if command.startswith("report"):
            assert "which is damaged" in Path(f"{path}.html").read_text()

    def test_rows_of_nonsense_between_good_ones(self, stalled, tmp_path):
        complete = pymemcg.open(stalled).usage.window()["t_ns"]
        at, rows = self.column(stalled, "usage", "t_ns")
        data = bytearray(stalled.read_bytes())
        data[at + 8 * 3000 : at + 8 * 3600] = np.random.default_rng(2).bytes(8 * 600)
        times = opened(bytes(data), tmp_path / "noise").usage.window()["t_ns"]
        assert np.isin(complete[:3000], times).all()
        assert np.isin(complete[3600:], times).all()
        assert times.size < rows - 500

    def test_a_number_of_rows_that_cannot_be(self, stalled, tmp_path):
        complete = pymemcg.open(stalled)
        data = bytearray(stalled.read_bytes())
        at = self.entry(stalled, "usage", "head")
        data[at : at + 8] = (2**40).to_bytes(8, "little")
        recording = opened(bytes(data), tmp_path / "head")
        assert np.array_equal(recording.usage.window()["t_ns"], complete.usage.window()["t_ns"])
        assert f"{2**40} rows" in recording.missing["usage"]

    def test_a_columns_place_is_known_by_the_others(self, stalled, tmp_path):
        complete = pymemcg.open(stalled)
        header = pymemcg.open(stalled).header
        data = bytearray(stalled.read_bytes())
        at = header.columns_offset + 2 * ffi.sizeof("struct memcg_column_header")  # limit_hits
        at += ffi.offsetof("struct memcg_column_header", "offset")
        data[at + 2] ^= 1
        recording = opened(bytes(data), tmp_path / "place")
        assert np.array_equal(recording.usage.window()["limit_hits"], complete.usage.window()["limit_hits"])
        assert "known by the other columns" in recording.missing["usage"]

    def test_info_that_is_no_json(self, stalled, tmp_path):
        data = bytearray(stalled.read_bytes())
        header = pymemcg.open(stalled).header
        data[header.info_offset] = ord("[")
        recording = opened(bytes(data), tmp_path / "info")
        assert recording.info == {}
        assert "is damaged" in recording.missing["info"]
        assert recording.usage.head == pymemcg.open(stalled).usage.head
        assert len(recording.hits()) == 0

    @pytest.mark.parametrize(
        ("at", "value", "says"),
        [
            (0, b"\0" * 8, "does not begin as one"),
            (12, b"\3\0\0\0", "layout version 3: expected 2.*can read it"),
            (8, b"\1\2\3\4", "byte order"),
            (28, b"\xff\0\0\0", "255 channels"),
            (40, b"\xff" * 8, "not inside the file"),
        ],
    )
    def test_what_is_refused_says_why(self, stalled, tmp_path, at, value, says):
        data = bytearray(stalled.read_bytes())
        data[at : at + len(value)] = value
        (tmp_path / "refused").write_bytes(data)
        with pytest.raises(RecordingError, match=says):
            pymemcg.open(tmp_path / "refused")

    def test_a_file_of_zeros(self, tmp_path):
        (tmp_path / "zeros").write_bytes(bytes(1 << 20))
        with pytest.raises(RecordingError, match="begins with zeros"):
            pymemcg.open(tmp_path / "zeros")

    def test_a_hole_is_read_as_rows_that_are_none(self, recorded, tmp_path):
        """A sparse file that lacks what a crashed machine had not written is not mapped where nothing is."""
        complete = pymemcg.open(recorded)
        path = tmp_path / "hole"
        path.write_bytes(recorded.read_bytes()[: complete.header.info_offset + complete.header.info_bytes])
        os.truncate(path, complete.header.file_bytes)
        recording = pymemcg.open(path)
        assert recording.usage.head == 0
        assert "left out" in recording.missing["usage"]
        use(recording)


class TestOfARing:
    def test_the_row_in_whose_place_the_writer_was_is_not_shown(self, killed):
        with open(killed, "rb") as file:
            ring = Ring(file.fileno(), str(killed))
        recording = pymemcg.open(killed)
        table = ring.tables["usage"]
        assert ring.head(table) > table.capacity, "it has not been round"
        assert recording.usage.head == table.capacity - 1
        assert recording.is_ring
        assert not recording.live
        times = recording.usage.window()["t_ns"]
        raw = ring.column(table, "t_ns")
        last = ring.head(table) - 1
        assert times[-1] == raw[last % table.capacity]
        assert times[0] == raw[(last - table.capacity + 2) % table.capacity]

    def test_nor_those_that_a_copy_was_at(self, killed, tmp_path):
        with open(killed, "rb") as file:
            ring = Ring(file.fileno(), str(killed))
        table = ring.tables["usage"]
        kind = ffi.typeof("struct memcg_channel_header")
        at = ring.header.channels_offset + table.index * ffi.sizeof(kind) + ffi.offsetof(kind, "begun")
        before = pymemcg.open(killed).usage.window()["t_ns"]
        for begun, left_out, noted in (
            (100, 100, False),
            (table.capacity, table.capacity, False),
            (2 * table.capacity, 0, True),
        ):
            data = bytearray(killed.read_bytes())
            data[at : at + 8] = (ring.head(table) + begun).to_bytes(8, "little")
            recording = opened(bytes(data), tmp_path / "copy")
            assert np.array_equal(recording.usage.window()["t_ns"], before[left_out:])
            assert ("usage" in recording.missing) == noted

    def test_one_that_is_written_is_of_one_moment(self):
        with Sampler(rate_hz=1000, adaptive=False) as sampler:
            recording = pymemcg.open(f"/proc/self/fd/{sampler._running.seat.ring_fd}")
            assert recording.live
            rows = recording.usage.head
            head = sampler.usage.head
            while sampler.usage.head < head + 10:
                time.sleep(0.01)
            assert recording.usage.head == rows > 0
            assert postmortem(recording).ending.how == "running"
            use(recording)

    def test_one_that_was_stopped(self, tmp_path):
        with Sampler() as sampler:
            fd = os.dup(sampler._running.seat.ring_fd)
            time.sleep(0.1)
        (tmp_path / "stopped").write_bytes(os.pread(fd, os.fstat(fd).st_size, 0))
        os.close(fd)
        recording = pymemcg.open(tmp_path / "stopped")
        assert postmortem(recording).ending.how == "stopped"
        assert recording.missing == {}


def test_reading_a_long_recording_keeps_no_memory(tmp_path):
    """Rows are looked at a piece at a time, and what is not damaged is not copied."""
    rows = 4_000_000
    t = T0 + np.arange(rows) * 1000
    path = tmp_path / "long"
    rowwriter.write(path, {"usage": {"t_ns": t, "usage_bytes": np.full(rows, 1 << 20)}})

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssFile", "RssAnon")))

    recording = pymemcg.open(path)
    before = resident()
    assert recording.missing == {}
    assert recording.usage.head == rows
    assert resident() - before < 12 << 20
    assert len(recording.usage.window()) == rows
    assert recording.usage.capacity % (RECORDING_ALIGN // 8) == 0


def test_it_needs_pandas_only_where_that_is_asked_for(recorded):
    try:
        frame = pymemcg.open(recorded).stat.to_pandas()
    except NotSupported:
        return
    assert len(frame) == pymemcg.open(recorded).stat.head
