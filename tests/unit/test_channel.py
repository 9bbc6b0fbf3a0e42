# SPDX-License-Identifier: Apache-2.0
"""Channels, windows and cursors, over a ring that the test writes."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringwriter import ROWS, SPECS, RingWriter, tick

from pymemcg import MemcgError, Sampler, schema
from pymemcg.channel import Channel
from pymemcg.ring import ChannelSpec


@pytest.fixture
def writer():
    made = RingWriter()
    yield made
    os.close(made.fd)


def rows_of(window) -> list[int]:
    """Which rows a window holds, by its content; each column must say the same."""
    rows = window["late_ns"].tolist()
    assert window["usage_bytes"].tolist() == [-row for row in rows]
    assert window["t_ns"].tolist() == [tick(row)["t_ns"] for row in rows]
    return rows


class TestWindow:
    def test_columns_are_read_only_contiguous_vectors_of_int64(self, writer):
        writer.tick(10)
        window = writer.channel().window()
        for name in window:
            column = window[name]
            assert (column.ndim, column.dtype, column.shape) == (1, np.int64, (10,))
            assert column.flags.c_contiguous
            assert not column.flags.writeable
            assert not column.flags.owndata

    @pytest.mark.parametrize("written", [10, ROWS, ROWS + 3, 3 * ROWS + ROWS // 2])
    def test_windows_share_the_memory_of_the_ring(self, writer, written):
        writer.tick(written)
        channel = writer.channel()
        whole = writer.ring.column(writer.ring.tables["usage"], "usage_bytes")
        one, other = channel.window(rows=200)["usage_bytes"], channel.window(rows=200)["usage_bytes"]
        assert np.shares_memory(one, other)
        assert np.shares_memory(one, whole)

    def test_a_window_across_the_wrap_is_one_slice(self, writer):
        writer.tick(ROWS + 20)
        window = writer.channel().window(rows=60)
        assert window.first_row % ROWS > (window.first_row + 60) % ROWS, "it wraps"
        assert rows_of(window) == list(range(ROWS - 40, ROWS + 20))
        assert window["t_ns"].flags.c_contiguous

    def test_a_long_window_costs_no_copy(self):
        specs = [ChannelSpec("usage", 1_000_000, 1_100_000, {"t_ns": "ns"})]
        writer = RingWriter(specs)
        writer.put("usage", {"t_ns": 1})
        writer.heads["usage"] = 3_000_000
        writer._word("usage", "head", 3_000_000)
        channel = writer.channel()
        window = channel.window(rows=1_000_000)
        assert len(window["t_ns"]) == 1_000_000
        assert np.shares_memory(window["t_ns"], writer.ring.column(writer.ring.tables["usage"], "t_ns"))
        os.close(writer.fd)

    def test_rows_seconds_and_since_choose_the_newest(self, writer):
        writer.tick(100)  # rows are 1 us apart
        channel = writer.channel()
        assert rows_of(channel.window(rows=7)) == list(range(93, 100))
        assert rows_of(channel.window(since_ns=tick(90)["t_ns"])) == list(range(90, 100))
        assert rows_of(channel.window(since_ns=tick(90)["t_ns"] + 1)) == list(range(91, 100))
        assert rows_of(channel.window(seconds=10e-6)) == list(range(89, 100))
        assert rows_of(channel.window()) == list(range(100))

    def test_of_several_bounds_the_smallest_window_counts(self, writer):
        writer.tick(100)
        channel = writer.channel()
        assert rows_of(channel.window(rows=7, seconds=1)) == list(range(93, 100))
        assert rows_of(channel.window(rows=50, since_ns=tick(95)["t_ns"])) == list(range(95, 100))
        assert rows_of(channel.window(seconds=20e-6, since_ns=tick(0)["t_ns"])) == list(range(79, 100))

    @pytest.mark.parametrize("bound", [{"rows": 0}, {"since_ns": 10**15}, {"rows": -5}])
    def test_a_window_of_nothing(self, writer, bound):
        writer.tick(10)
        window = writer.channel().window(**bound)
        assert len(window) == 0
        assert window["t_ns"].shape == (0,)
        assert window.valid()
        assert len(window.to_numpy()) == 0

    @pytest.mark.parametrize("bound", [{"rows": 10**9}, {"seconds": 1e9}, {"seconds": float("inf")}, {"since_ns": -(10**15)}])
    def test_a_bound_beyond_the_ring_bounds_nothing(self, writer, bound):
        writer.tick(10)
        assert rows_of(writer.channel().window(**bound)) == list(range(10))

    def test_before_the_first_row(self, writer):
        window = writer.channel().window(seconds=1)
        assert len(window) == 0
        assert window["usage_bytes"].shape == (0,)

    @pytest.mark.parametrize("written", [1, ROWS - ROWS // 16, ROWS - 2, ROWS - 1, ROWS, ROWS + 1, 5 * ROWS])
    def test_a_fresh_window_stays_good_while_the_writer_goes_on_for_a_while(self, writer, written):
        """Guard rows: a window that could be overtaken before it is looked at would be none."""
        writer.tick(written)
        window = writer.channel().window()
        assert rows_of(window)[-1] == written - 1
        before = rows_of(window)
        assert window.valid()
        writer.tick(ROWS // 16 - 1)
        assert window.valid()
        assert rows_of(window) == before

    def test_valid_ends_when_the_first_row_may_be_overwritten(self, writer):
        """Row r shares its place with row r + capacity, which is being written as soon as that is the head."""
        writer.tick(100)
        window = writer.channel().window(rows=1)
        writer.tick(ROWS - 2)
        assert writer.heads["usage"] == ROWS + 98
        assert window.valid()
        writer.tick(1)
        assert not window.valid()

    def test_a_window_keeps_its_rows_when_new_ones_come(self, writer):
        writer.tick(10)
        window = writer.channel().window()
        writer.tick(10)
        assert rows_of(window) == list(range(10))

    def test_an_unknown_column_is_a_key_error_that_names_those_there_are(self, writer):
        writer.tick(1)
        window = writer.channel().window()
        with pytest.raises(KeyError, match=r"usage has no column 'nonsense'.*t_ns, late_ns, usage_bytes"):
            window["nonsense"]
        assert "t_ns" in window
        assert "nonsense" not in window

    def test_a_hidden_column_says_why(self, writer):
        channel = Channel("usage", writer.ring, writer.ring.tables["usage"], hidden={"usage_bytes": "it is another's"})
        assert channel.names == ("t_ns", "late_ns")
        with pytest.raises(KeyError, match="it is another's"):
            channel.window()["usage_bytes"]

    def test_a_copy_is_its_own_and_stays(self, writer):
        writer.tick(ROWS)
        window = writer.channel().window(rows=20)
        copy = window.copy()
        assert not np.shares_memory(copy["t_ns"], window["t_ns"])
        writer.tick(5 * ROWS)
        assert rows_of(copy) == list(range(ROWS - 20, ROWS))
        assert (copy.valid(), window.valid()) == (True, False)

    def test_a_copy_leaves_out_what_was_overwritten(self, writer):
        writer.tick(ROWS)
        window = writer.channel().window(rows=20)
        writer.tick(ROWS - 10)
        copy = window.copy()
        assert rows_of(copy) == list(range(ROWS - 9, ROWS))
        assert copy.first_row == ROWS - 9

    def test_structured_array(self, writer):
        writer.tick(5)
        table = writer.channel().window(rows=3).to_numpy()
        assert table.dtype.names == ("t_ns", "late_ns", "usage_bytes")
        assert table.tolist() == [tuple(tick(row).values()) for row in (2, 3, 4)]

    def test_arrays_outlive_their_channel(self, writer):
        writer.tick(5)
        channel = writer.channel()
        array = channel.window()["late_ns"]
        del channel
        writer.ring = None
        gc.collect()
        assert array.tolist() == [0, 1, 2, 3, 4]


class TestRead:
    def test_every_row_comes_once(self, writer):
        channel = writer.channel()
        seen, cursor = [], None
        for rows in (3, 0, ROWS // 2, 1, ROWS - 1, 7):
            writer.tick(rows)
            window, cursor, lost = channel.read(cursor)
            assert lost == 0
            seen += rows_of(window)
        assert seen == list(range(writer.heads["usage"]))

    def test_without_a_cursor_all_that_is_left_comes_and_nothing_counts_as_lost(self, writer):
        writer.tick(2 * ROWS)
        window, cursor, lost = writer.channel().read()
        assert rows_of(window) == list(range(ROWS + 1, 2 * ROWS))
        assert (cursor, lost) == (2 * ROWS, 0)

    @pytest.mark.parametrize("behind", [ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 7 * ROWS + 13])
    def test_what_was_lapped_is_counted_exactly(self, writer, behind):
        writer.tick(10)
        channel = writer.channel()
        _, cursor, _ = channel.read()
        writer.tick(behind)
        window, after, lost = channel.read(cursor)
        assert len(window) + lost == behind == after - cursor
        assert lost == max(0, behind - (ROWS - 1))
        assert rows_of(window) == list(range(10 + lost, 10 + behind))
        assert window.first_row == cursor + lost

    def test_the_row_that_is_being_written_is_never_shown(self, writer):
        writer.tick(ROWS)
        writer.begin_row("usage", {"t_ns": -1, "late_ns": -1, "usage_bytes": -1})
        window, _, lost = writer.channel().read(0)
        assert rows_of(window) == list(range(1, ROWS))
        assert lost == 1
        assert -1 not in writer.channel().window()["late_ns"]

    def test_a_read_window_owns_its_rows(self, writer):
        writer.tick(10)
        channel = writer.channel()
        window, _, _ = channel.read()
        assert not np.shares_memory(window["t_ns"], channel.window()["t_ns"])
        writer.tick(3 * ROWS)
        assert window.valid()
        assert rows_of(window) == list(range(10))
        assert not window["t_ns"].flags.writeable

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3 * ROWS), st.booleans(), st.integers(0, 2 * ROWS)), max_size=12))
    def test_any_order_of_writing_and_reading(self, steps):
        writer = RingWriter()
        channel, cursor, seen, lost = writer.channel(), 0, 0, 0
        for rows, reads, wanted in steps:
            writer.tick(rows)
            head = writer.heads["usage"]
            window = channel.window(rows=wanted)
            assert rows_of(window) == list(range(head - len(window), head))
            assert len(window) == min(wanted, head, ROWS - ROWS // 16)
            if reads:
                window, cursor, gone = channel.read(cursor)
                seen, lost = seen + len(window), lost + gone
                assert seen + lost == cursor == head
                assert rows_of(window) == list(range(head - len(window), head))
        os.close(writer.fd)


class TestThreads:
    def test_readers_of_one_channel_in_several_threads_lose_nothing(self, writer):
        channel, done, failures = writer.channel(), threading.Event(), []

        def read() -> None:
            cursor, seen = 0, 0
            try:
                while not done.is_set() or cursor < writer.heads["usage"]:
                    window, cursor, lost = channel.read(cursor)
                    rows = rows_of(window)
                    assert rows == list(range(cursor - len(rows), cursor))
                    seen += len(rows) + lost
                assert seen == cursor
            except Exception as error:  # noqa: BLE001 - told in the main thread
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for row in range(3 * ROWS):
            writer.put("usage", tick(row))
        done.set()
        for thread in threads:
            thread.join()
        assert failures == []


class TestPandas:
    def test_the_index_is_utc_by_the_clock_channel(self, writer):
        pd = pytest.importorskip("pandas")
        realtime = pd.Timestamp("2026-01-02T03:04:05Z").value
        writer.put("clock", {"t_ns": 0, "realtime_ns": realtime})
        writer.tick(3)
        frame = writer.channel().window().to_pandas()
        assert str(frame.index.tz) == "UTC"
        assert frame.index[0] == pd.Timestamp("2026-01-02T03:04:05.000000007Z")
        assert frame.index[2] - frame.index[1] == pd.Timedelta(1, "us")
        assert frame["usage_bytes"].tolist() == [0, -1, -2]
        assert list(frame.columns) == ["t_ns", "late_ns", "usage_bytes"]

    def test_a_clock_that_was_set_shifts_only_what_comes_after(self, writer):
        writer.put("clock", {"t_ns": 0, "realtime_ns": 10**18})
        writer.put("clock", {"t_ns": 5000, "realtime_ns": 2 * 10**18})
        times = np.array([4999, 5000, 6000])
        assert writer.channel().realtime_ns(times).tolist() == [10**18 + 4999, 2 * 10**18, 2 * 10**18 + 1000]

    def test_times_before_the_first_pair_go_by_the_rings_own(self, writer):
        header = writer.ring.header
        t_ns = np.array([header.created_ns, header.created_ns + 10**9])
        assert writer.channel().realtime_ns(t_ns).tolist() == [header.created_realtime_ns, header.created_realtime_ns + 10**9]

    def test_no_rows(self, writer):
        pytest.importorskip("pandas")
        writer.put("clock", {"t_ns": 0, "realtime_ns": 10**18})
        frame = writer.channel().window().to_pandas()
        assert len(frame) == 0
        assert list(frame.columns) == list(SPECS[0].columns)
        assert str(frame.index.tz) == "UTC"

    def test_a_frame_is_a_copy(self, writer):
        pytest.importorskip("pandas")
        writer.tick(3)
        frame = writer.channel().window().to_pandas()
        writer.tick(2 * ROWS)
        assert frame["late_ns"].tolist() == [0, 1, 2]


def test_a_closed_channel_says_why_and_keeps_its_rows(writer):
    writer.tick(5)
    channel = writer.channel()
    assert channel.closed is None
    writer.close("usage", 123, 19)
    assert channel.closed == os.strerror(19)
    assert rows_of(channel.window()) == list(range(5))


def test_what_a_channel_tells_of_itself(writer):
    channel = writer.channel()
    writer.tick(3)
    assert channel.names == ("t_ns", "late_ns", "usage_bytes")
    assert dict(channel.units) == SPECS[0].columns
    assert (channel.head, channel.capacity, channel.period_ns) == (3, ROWS, 1_000_000)
    assert "usage" in repr(channel)
    assert "3 rows" in repr(channel.window())


class TestAbsent:
    def test_an_absent_channel_is_empty_and_not_an_error(self, writer):
        channel = Channel("stat", writer.ring, None)
        assert (channel.names, channel.head, channel.capacity, channel.closed) == ((), 0, 0, None)
        window = channel.window(seconds=1)
        assert len(window) == 0
        with pytest.raises(KeyError, match="absent"):
            window["anon"]
        window, cursor, lost = channel.read()
        assert (len(window), cursor, lost) == (0, 0, 0)
        assert channel.read(cursor)[1:] == (0, 0)
        assert len(channel.to_numpy()) == 0

    def test_as_a_frame(self, writer):
        pytest.importorskip("pandas")
        assert Channel("stat", writer.ring, None).to_pandas().empty

    def test_switched_off_by_the_environment_everything_is_a_no_op(self, monkeypatch):
        monkeypatch.setenv("PYMEMCG_DISABLE", "1")
        threads = threading.active_count(), len(os.listdir("/proc/self/task"))
        with Sampler("cgroup:/there/is/no/such/group") as sampler:
            assert sampler.role == "disabled"
            for name in schema.CHANNELS:
                channel = getattr(sampler, name)
                assert channel.head == 0
                assert len(channel.window(seconds=1)) == 0
                assert channel.read()[1:] == (0, 0)
            assert sampler.stats() == {}
            assert threading.active_count() == threads[0]
            assert (
                len(os.listdir("/proc/self/task")) <= threads[1]
            )  # one that was joined before was in /proc for a moment longer
        sampler.stop()

    def test_switched_off_code_that_looks_at_columns_goes_on(self, monkeypatch):
        """Who switches a service's sampler off wants it to run on, not to meet a KeyError."""
        monkeypatch.setenv("PYMEMCG_DISABLE", "1")
        with Sampler() as sampler:
            assert sampler.usage.window(seconds=1)["usage_bytes"].shape == (0,)
            assert sampler.usage.read()[0]["limit_hits"].dtype == np.int64
            assert sampler.stat.window().copy()["anon"].shape == (0,)

    def test_before_start_there_are_no_channels(self):
        with pytest.raises(MemcgError, match=r"no usage before start\(\)"):
            _ = Sampler().usage
        with pytest.raises(AttributeError, match="nonsense"):
            _ = Sampler().nonsense


@pytest.mark.parametrize(
    "options",
    [{"rate_hz": 0}, {"rate_hz": -1}, {"rate_hz": 1e6}, {"rate_hz": float("nan")}, {"stat_rate_hz": 1000}, {"history_s": 0}],
)
def test_options_out_of_range_are_refused_at_once(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampler(**options)
