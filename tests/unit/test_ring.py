# SPDX-License-Identifier: Apache-2.0
"""The ring's file and its mapping."""

from __future__ import annotations

import gc
import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringwriter import PAGE, ROWS, SPECS, RingWriter, tick

from pymemcg._ffi import ffi, lib
from pymemcg.errors import RecordingError, SourceError
from pymemcg.ring import RECORDING_ALIGN, ChannelSpec, Ring, create

# Places in the file, said anew here: a change of the layout must not go unnoticed.
VERSION_AT, FILE_BYTES_AT, ALIGN_AT, CHANNELS_AT, COLUMNS_AT = 12, 16, 24, 28, 32
CHANNELS_OFFSET_AT, INFO_OFFSET_AT = 40, 56


@pytest.fixture
def writer():
    made = RingWriter()
    yield made
    os.close(made.fd)


def mappings(name: str) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]


def content(fd: int) -> bytearray:
    return bytearray(os.pread(fd, os.fstat(fd).st_size, 0))


def opened(data: bytes) -> Ring:
    fd = os.memfd_create("pymemcg-changed")
    try:
        os.write(fd, data)
        return Ring(fd, "changed")
    finally:
        os.close(fd)


class TestLayout:
    def test_tables_tell_what_was_asked_for(self, writer):
        usage = writer.ring.tables["usage"]
        assert usage.units == SPECS[0].columns
        assert usage.period_ns == 1_000_000
        assert list(writer.ring.tables) == ["usage", "clock"]

    @pytest.mark.parametrize("align", [PAGE, RECORDING_ALIGN])
    @pytest.mark.parametrize("rows", [1, 1000, 8192, 8193])
    def test_columns_are_aligned_and_hold_at_least_what_was_asked_for(self, align, rows):
        fd = os.memfd_create("pymemcg-test")
        create(fd, [ChannelSpec("a", 0, rows, {"x": "", "y": ""}), *SPECS], {}, align=align, reserve=True)
        tables = Ring(fd, "memfd").tables.values()
        os.close(fd)
        places = sorted((offset, table.capacity * 8) for table in tables for offset in table.offsets.values())
        assert all(offset % align == 0 and size % align == 0 for offset, size in places)
        assert all(offset + size <= after for (offset, size), (after, _) in itertools.pairwise(places))
        assert next(iter(tables)).capacity >= rows

    def test_the_file_describes_itself(self, writer):
        data = bytes(content(writer.fd))
        assert data[:8] == b"PYMEMCG\0"
        assert struct.unpack_from("=I", data, VERSION_AT) == (lib.MEMCG_RING_VERSION,)
        assert struct.unpack_from("=Q", data, FILE_BYTES_AT) == (len(data),)
        assert struct.unpack_from("=III", data, ALIGN_AT) == (PAGE, 2, 5)
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert boot_id.encode() in data[:PAGE]

    def test_a_reserved_ring_has_no_holes_and_a_recording_may(self):
        """A hole in a full tmpfs would kill the writer with SIGBUS."""
        sizes = []
        for reserve in (True, False):
            fd = os.memfd_create("pymemcg-test")
            create(fd, [ChannelSpec("a", 0, 1 << 20, {"x": ""})], {}, align=PAGE, reserve=reserve)
            status = os.fstat(fd)
            sizes.append((status.st_blocks * 512, status.st_size))
            os.close(fd)
        assert sizes[0][0] >= sizes[0][1]
        assert sizes[1][0] < sizes[1][1] // 100

    @pytest.mark.parametrize(
        "spec",
        [
            ChannelSpec("a", 0, 10, {f"c{i}": "" for i in range(129)}),
            ChannelSpec("a" * 16, 0, 10, {"x": ""}),
            ChannelSpec("a", 0, 10, {"x" * 48: ""}),
            ChannelSpec("a", 0, 10, {"x": "u" * 16}),
            ChannelSpec("a", 0, 0, {"x": ""}),
            ChannelSpec("a", 0, 10, {}),
        ],
        ids=["columns", "name", "column", "unit", "rows", "none"],
    )
    def test_what_does_not_fit_is_an_error(self, spec):
        fd = os.memfd_create("pymemcg-test")
        with pytest.raises(SourceError, match="cannot be created"):
            create(fd, [spec], {}, align=PAGE, reserve=True)
        os.close(fd)


class TestMapping:
    def test_each_column_stands_twice_in_a_row(self, writer):
        writer.tick(ROWS + 5)
        for name in SPECS[0].columns:
            column = writer.ring.column(writer.ring.tables["usage"], name)
            assert column.shape == (2 * ROWS,)
            assert (column[:ROWS] == column[ROWS:]).all()
            assert column[ROWS : ROWS + 5].tolist() == [tick(ROWS + i)[name] for i in range(5)]

    def test_what_is_written_later_is_seen(self, writer):
        column = writer.ring.column(writer.ring.tables["usage"], "late_ns")
        writer.put("usage", {"late_ns": 4711})
        assert column[0] == column[ROWS] == 4711

    def test_arrays_are_read_only_and_cannot_be_made_writable(self, writer):
        column = writer.ring.column(writer.ring.tables["usage"], "t_ns")
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            column.flags.writeable = True

    def test_no_page_of_a_reader_is_writable(self, writer):
        lines = mappings("memfd:pymemcg-test")
        assert lines
        assert {line.split()[1] for line in lines} == {"r--s"}

    def test_arrays_outlive_the_ring_and_then_give_the_memory_back(self):
        gc.collect()  # what other tests have dropped
        before = len(mappings("memfd:pymemcg-test"))
        writer = RingWriter()
        writer.tick(10)
        window = writer.channel().window()
        array = window["usage_bytes"][2:]
        os.close(writer.fd)
        del writer, window
        gc.collect()
        assert array.tolist() == [-i for i in range(2, 10)]
        derived = np.asarray(memoryview(array))
        del array
        gc.collect()
        assert derived.sum() == -sum(range(2, 10))
        del derived
        gc.collect()
        assert len(mappings("memfd:pymemcg-test")) == before


def patched(writer, at: int, form: str, *values: int) -> bytes:
    data = content(writer.fd)
    struct.pack_into(form, data, at, *values)
    return bytes(data)


class TestDamage:
    def test_empty_short_and_foreign_files_are_no_rings(self, writer):
        data = bytes(content(writer.fd))
        for wrong in (
            b"",
            b"PYMEMCG\0",
            data[:100],
            data[: PAGE + 100],
            data[:-PAGE],
            data + bytes(PAGE),
            os.urandom(3 * PAGE),
        ):
            with pytest.raises(RecordingError, match="damaged"):
                opened(wrong)

    def test_another_version_and_another_byte_order_are_told_apart_from_damage(self, writer):
        with pytest.raises(RecordingError, match="another layout version"):
            opened(patched(writer, VERSION_AT, "=I", lib.MEMCG_RING_VERSION + 1))
        with pytest.raises(RecordingError, match="byte order"):
            opened(patched(writer, 8, "=I", 0x04030201))

    @pytest.mark.parametrize("at", [CHANNELS_OFFSET_AT, CHANNELS_OFFSET_AT + 8, INFO_OFFSET_AT])
    @pytest.mark.parametrize("value", [2**64 - 64, 2**63, 1 << 40, 1])
    def test_tables_outside_of_the_file(self, writer, at, value):
        with pytest.raises(RecordingError, match="damaged"):
            opened(patched(writer, at, "=Q", value))

    def test_counts_that_reach_out_of_the_file(self, writer):
        for at in (CHANNELS_AT, COLUMNS_AT, COLUMNS_AT + 4):
            with pytest.raises(RecordingError, match="damaged"):
                opened(patched(writer, at, "=I", 2**32 - 1))

    @pytest.mark.parametrize("info", [b"{", b"\xff\xfe", b"[1, 2]", b"nul"])
    def test_info_that_is_no_json_object(self, info):
        data = content(RingWriter(info={"key": "value" * 10}).fd)
        (at,) = struct.unpack_from("=Q", data, INFO_OFFSET_AT)
        (size,) = struct.unpack_from("=I", data, COLUMNS_AT + 4)
        data[at : at + size] = info.ljust(size)
        with pytest.raises(RecordingError):
            opened(bytes(data))

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=8))
    def test_no_change_of_header_or_tables_can_crash_a_reader(self, changes):
        writer = RingWriter(info={"some": "info"})
        writer.tick(3)
        data = content(writer.fd)
        os.close(writer.fd)
        for at, value in changes:
            data[at] = value
        try:
            ring = opened(bytes(data))
        except RecordingError:
            return
        for table in ring.tables.values():
            ring.head(table)
            ring.closed(table)
            for name in table.units:
                assert ring.column(table, name).sum() is not None


def test_the_layout_that_was_published_has_not_moved():
    """docs/file-format.md and recordings that exist depend on it: a change needs a new version."""
    header, channel = ffi.typeof("struct memcg_ring_header"), ffi.typeof("struct memcg_channel_header")
    assert ffi.offsetof(header, "state") == 128
    assert (ffi.sizeof(channel), ffi.offsetof(channel, "head")) == (128, 64)
    assert ffi.sizeof("struct memcg_column_header") == 80
