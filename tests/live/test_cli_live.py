# SPDX-License-Identifier: Apache-2.0
"""The commands on groups of this machine: full ones, squeezed ones, and such as vanish."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import facts
import numpy as np
import outside
import pytest
from fullness import run_in_full, run_inside
from pressure import counted

import pymemcg
import pymemcg.once
from pymemcg.child import PREFIX

pytestmark = pytest.mark.live

MIB = 1 << 20
COMMAND = [sys.executable, "-m", "pymemcg"]
# Who runs the tests in a shell's background ignores SIGINT and hands that down; a person's Ctrl-C is what is meant.
HEEDING = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN = "from pymemcg.cli import main; sys.exit(main())"
WITH_CTRL_C = [sys.executable, "-c", HEEDING + MAIN]
NO_RICH = [sys.executable, "-c", f"{HEEDING}sys.modules.update({{'rich': None, 'rich_argparse': None}}); {MAIN}"]
PAGES = "m = bytearray(b'x') * ({size} << 20)"
LOG = str(Path(__file__).parent.parent / "data" / "6.12-v2" / "dmesg-oom.txt")
IN_A_FULL_CONTAINER = [
    ["doctor"],
    ["doctor", "--json"],
    ["explain"],
    ["explain", "--json"],
    ["watch", "--once"],
    ["watch", "--once", "--json"],
    ["oom", LOG],
]


def run(*words: str, program: list[str] = COMMAND, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *words], capture_output=True, text=True, timeout=facts.PATIENCE_S, check=False, env=os.environ | variables
    )


def groups_of(pid: int) -> list[Path]:
    tops = {Path(level.directory) for level in pymemcg.resolve().levels}
    if above := pymemcg.resolve().cgroup2_directory:
        tops.add(Path(above))
    return [path for top in tops for path in top.glob(f"{PREFIX}{pid}-*")]


# ---- In a container that is full -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", IN_A_FULL_CONTAINER)
def test_what_must_run_in_a_full_container_needs_little_more_than_an_interpreter(make_group, words, tmp_path):
    full, done = run_in_full(make_group, tmp_path, *COMMAND, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert pymemcg.once.read_once(pymemcg.resolve(full.directory)).get("oom_kills", 0) == 0


# ---- doctor --------------------------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_doctor_tells_of_the_group_that_it_is_asked_for(make_group, make_actor):
    outer = make_group("outer", limit_bytes=64 * MIB)
    inner = outer.child("inner", limit_bytes=96 * MIB)
    make_actor(inner)
    report = json.loads(run("doctor", inner.spec, "--json").stdout)
    group = report["group"]
    assert group["directory"] == inner.directory
    assert group["limit_bytes"] == 64 * MIB
    assert group["limit_level"] == pymemcg.resolve(outer.spec).levels[0].name
    assert [level["limit_bytes"] for level in group["levels"][:2]] == [96 * MIB, 64 * MIB]
    assert group["own"] is False
    found = {check["name"]: check for check in report["checks"]}
    target = pymemcg.resolve(inner.spec)
    if target.pressure_scope == "group":
        assert found["pressure"]["state"] == "yes"
        assert group["pressure_file"] == f"{inner.cgroup2_directory}/memory.pressure"


def test_doctor_says_whose_sampler_a_group_has(make_group):
    group = make_group("sampled")
    found = {check["name"]: check for check in json.loads(run("doctor", group.spec, "--json").stdout)["checks"]}
    assert found["shared rings"]["facts"]["sampled_now"] is False
    with pymemcg.Sampler(group.spec) as sampler:
        found = {check["name"]: check for check in json.loads(run("doctor", group.spec, "--json").stdout)["checks"]}
        assert found["shared rings"]["facts"]["sampled_now"] is True
        if sampler.role == "sampling" and found["shared rings"]["state"] == "yes":
            assert found["shared rings"]["facts"]["writer_pid"] == os.getpid()


def test_what_doctor_says_the_sampler_holds_is_what_it_holds(make_group):
    group = make_group("held", limit_bytes=64 * MIB)
    found = {check["name"]: check for check in json.loads(run("doctor", group.spec, "--json").stdout)["checks"]}
    facts = found["sampler's memory"]["facts"]
    with pymemcg.Sampler(group.spec) as sampler:
        stats = sampler.stats()
    assert facts["ring_bytes"] == stats["ring_bytes"]
    assert stats["held_bytes"] <= facts["held_bytes_at_most"] <= stats["held_bytes"] * 1.15


def test_doctor_knows_counters_that_do_not_count(make_group):
    group = make_group("memsw", limit_bytes=64 * MIB)
    file = Path(group.directory, "memory.memsw.limit_in_bytes")
    if not file.exists():
        pytest.skip("cgroup v2, or a kernel that does not account swap: there is no limit on memory and swap together")
    outside.write(group, file.name, str(64 * MIB))
    found = {check["name"]: check for check in json.loads(run("doctor", group.spec, "--json").stdout)["checks"]}
    assert found["limit_hits"]["state"] == "no"
    assert "memsw" in found["limit_hits"]["needs"]
    assert "limit_hits" not in found["usage"]["facts"]["columns"]


# ---- watch ---------------------------------------------------------------------------------------------------------


@contextmanager
def watching(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [*WITH_CTRL_C, "watch", *words]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_watch_streams_json_that_follows_the_group(make_group, make_actor):
    group = make_group("stream", limit_bytes=64 * MIB)
    actor = make_actor(group)
    with watching(group.spec, "--json", "--interval", "200ms") as process:
        assert process.stdout is not None
        before: dict[str, Any] = json.loads(process.stdout.readline())
        actor.do(PAGES.format(size=24))
        done_ns, lines = time.monotonic_ns(), [before]
        while lines[-1]["t_ns"] < done_ns:  # some may have been told meanwhile
            lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=facts.PATIENCE_S) == 130
    after = lines[-1]
    assert before["limit_bytes"] == 64 * MIB
    assert after["usage_bytes"] > before["usage_bytes"] + 20 * MIB
    assert after["headroom_bytes"] < before["headroom_bytes"] - 20 * MIB
    assert max(line["usage_max_bytes"] for line in lines) >= after["usage_bytes"] - MIB
    assert after["t_ns"] > before["t_ns"]
    assert after["processes"] == 1
    assert all(value is not None for name, value in after.items())


@pytest.mark.kernel
def test_watch_counts_limit_hits(make_group, make_actor, scratch):
    group = make_group("hits", limit_bytes=24 * MIB)
    file = scratch / "data"
    file.write_bytes(os.urandom(MIB) * 48)
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    actor = make_actor(group)
    with watching(group.spec, "--json", "--interval", "200ms") as process:
        assert process.stdout is not None
        process.stdout.readline()
        actor.do(f"f = open({str(file)!r}, 'rb', buffering=0)\nwhile f.read(1 << 20): pass")
        last = [json.loads(process.stdout.readline()) for _ in range(3)][-1]
    assert 0 < last["limit_hits"] <= counted(group, "max")
    assert last["limit_hits_per_s"] > 0


def test_watch_ends_with_its_group(make_group):
    group = make_group("gone")
    with watching(group.spec, "--json", "--interval", "100ms") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        group.close()
        assert process.wait(timeout=facts.PATIENCE_S) == pymemcg.SourceError.exit_code
        errors = process.stderr.read()
    assert group.directory in errors
    assert errors.count("\n") == 1


def test_without_a_terminal_watch_prints_lines(make_group):
    group = make_group("lines", limit_bytes=64 * MIB)
    with watching(group.spec, "--interval", "100ms") as process:
        assert process.stdout is not None
        header, first, second = (process.stdout.readline() for _ in range(3))
    assert header.split()[:3] == ["time", "usage", "max"]
    assert "64.0 MiB" in first
    assert len(first) == len(second)


def seen_in_terminal(command: list[str], until: bytes, *, rows: int = 24, columns: int = 80) -> tuple[bytes, int]:
    """What a program writes to a terminal until it has written something, and its status after Ctrl-C."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": str(columns), "LINES": str(rows), "TERM": "xterm-256color"}
        os.execv(command[0], command)
    seen, deadline = b"", time.monotonic() + facts.PATIENCE_S
    interrupted = False
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            seen += data
        if until in seen and not interrupted:
            os.write(terminal, b"\x03")
            interrupted = True
    os.close(terminal)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_screen_shows_the_group_and_gives_the_terminal_back(make_group):
    pytest.importorskip("rich")
    group = make_group("screen", limit_bytes=64 * MIB)
    seen, status = seen_in_terminal([*WITH_CTRL_C, "watch", group.spec, "--interval", "100ms"], b"ticks/s")
    text = seen.decode()
    assert status == 130
    assert "of 64.0 MiB" in text
    assert "limit hits" in text
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1  # into the other screen and back
    assert "\x1b[?25h" in text  # the cursor is shown again


def test_without_rich_a_terminal_gets_lines(make_group):
    group = make_group("plain", limit_bytes=64 * MIB)
    seen, status = seen_in_terminal([*NO_RICH, "watch", group.spec, "--interval", "100ms"], b"64.0 MiB")
    assert status == 130
    assert b"\x1b" not in seen


# ---- record --------------------------------------------------------------------------------------------------------


def test_record_writes_what_open_reads(make_group, tmp_path):
    group = make_group("record", limit_bytes=64 * MIB)
    file = tmp_path / "it.memcg"
    done = run("record", group.spec, "--duration", "1s", "--rate", "500", "--stat-rate", "20", "--fixed-rate", "-o", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    recording = pymemcg.open(file)
    assert recording.info["target"]["directory"] == group.directory
    assert 0 < recording.usage.head <= (600 if facts.EMULATED else 520)
    assert recording.usage.period_ns == 2_000_000
    rows = recording.usage.window()
    assert np.diff(rows["t_ns"] - rows["late_ns"]).min() == 2_000_000  # far from the limit it would tick more rarely by itself
    assert recording.stat.period_ns == 50_000_000
    assert f"{recording.usage.head} rows" in done.stdout
    assert str(file) in done.stdout
    assert os.listdir(tmp_path) == ["it.memcg"]


def test_record_says_that_ticks_slow_down_far_from_the_limit(make_group, tmp_path):
    group = make_group("slow")
    done = run("record", group.spec, "--duration", "1s", "-o", str(tmp_path / "it.memcg"))
    assert done.returncode == 0, done.stderr
    assert pymemcg.open(tmp_path / "it.memcg").usage.head < 500
    assert "slow down" in done.stdout
    assert "--fixed-rate" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_recording_that_is_ended_early_keeps_what_there_is(make_group, tmp_path, number, status):
    group = make_group("early")
    file = tmp_path / "it.memcg"
    command = [*WITH_CTRL_C, "record", group.spec, "--duration", "1h", "-o", str(file)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + facts.PATIENCE_S
        while not Path(f"{file}.part").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
        process.send_signal(number)
        out, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert process.returncode == status
    assert errors == ""
    assert "ended early" in out
    assert pymemcg.open(file).usage.head > 0
    assert os.listdir(tmp_path) == ["it.memcg"]


def test_a_recording_that_cannot_be_written_is_told(make_group, tmp_path):
    group = make_group("nowhere")
    done = run("record", group.spec, "--duration", "1s", "-o", str(tmp_path / "missing" / "it.memcg"))
    assert done.returncode == pymemcg.RecordingError.exit_code
    assert "missing" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_place_that_cannot_take_a_recording_is_told_at_the_start(make_group, tmp_path):
    group, file = make_group("nowhere"), tmp_path / "file"
    file.touch()
    done = run("record", group.spec, "--duration", "1h", "-o", str(tmp_path))
    assert done.returncode == pymemcg.RecordingError.exit_code
    assert f"{tmp_path}: is a folder, and the recording is one file" in done.stderr
    done = run("record", group.spec, "--duration", "1h", "--parquet", str(file))
    assert done.returncode == pymemcg.MemcgError.exit_code
    assert f"{file}: is no folder, and a data set needs one" in done.stderr
    assert os.listdir(tmp_path) == ["file"]


# ---- demo ----------------------------------------------------------------------------------------------------------


Demo = tuple[int, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def demos() -> Callable[[], dict[str, Demo]]:
    """With rich and without it, side by side: each takes 8 s. By name, the process's number and what it said."""

    @cache
    def show() -> dict[str, Demo]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"COLUMNS": "80"}}
        with ExitStack() as stack:
            started = {
                name: stack.enter_context(subprocess.Popen([*program, "demo"], text=True, **pipes))
                for name, program in (("rich", COMMAND), ("no rich", NO_RICH))
            }
            found = {}
            for name, process in started.items():
                out, errors = process.communicate(timeout=facts.PATIENCE_S)
                found[name] = process.pid, subprocess.CompletedProcess(process.args, process.returncode, out, errors)
            return found

    return show


@pytest.mark.parametrize("name", ["rich", "no rich"])
@pytest.mark.usefixtures("own_groups", "scratch")
def test_demo_squeezes_a_service_and_cleans_up(name, demos):
    pid, done = demos()[name]
    out = done.stdout
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in (
        "batch job",
        "limit hits",
        "slowest req.",
        "p99",
        "stalled",
        "sampled",
        "what it cost",
        "pymemcg doctor",
    ):
        assert word in out
    assert ("a limit hit near" in out) == ("Near = within" in out)  # where requests are slow one is near to all of them
    assert "64.0 MiB ┤" in out
    assert max(map(len, out.splitlines()[4:])) <= 110
    assert groups_of(pid) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("own_groups", "scratch")
def test_demo_cleans_up_when_it_is_ended(number, status):
    with subprocess.Popen([*WITH_CTRL_C, "demo"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + facts.PATIENCE_S
        members = ""
        while not members and process.poll() is None and time.monotonic() < deadline:
            for path in groups_of(process.pid):
                try:
                    members += (path / "cgroup.procs").read_text()
                except OSError:  # the probe's, which is gone again
                    continue
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=facts.PATIENCE_S)
    assert members
    assert process.returncode == status
    assert errors == ""
    assert groups_of(process.pid) == []


def test_demo_does_not_squeeze_where_its_own_group_has_little_left(make_group):
    group = make_group("small", limit_bytes=128 * MIB)
    done = run_inside(group, *COMMAND, "demo")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "left below your own limit" in text
    assert "of 128.0 MiB" in text


def test_where_no_group_can_be_made_demo_samples_its_own(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody who may not")
    code = (
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); from pymemcg.cli import main; sys.exit(main())"
    )
    # Whoever it becomes may not be allowed to read where the interpreter lies.
    modules = ("cli.demo", "cli._stage", "cli._story", "cli._live", "cli._stalls", "_detect", "_tally")
    imports = f"import {', '.join(f'pymemcg.{module}' for module in modules)}; "
    done = run("demo", program=[sys.executable, "-c", imports + code])
    assert done.returncode == 0, done.stderr
    assert "So this is your own group" in " ".join(done.stdout.split())
    assert "sampled" in done.stdout
    assert "pymemcg watch" in done.stdout
