# SPDX-License-Identifier: Apache-2.0
"""What is said of real ends: of a service that the OOM killer ended with its sampler in it, of SIGKILL, and of a clean stop."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from pathlib import Path

import facts
import outside
import pytest
from actor import MIB, kernels_count, until

import pymemcg
from pymemcg.cli import main
from pymemcg.errors import NotSupported
from pymemcg.postmortem import postmortem, running_boot_id

pytestmark = pytest.mark.live

LIMIT = 96 * MIB
# A service that answers, and leaks; what it leaks can be freed by nothing but a kill. Huge pages would leak 2 MiB at once.
SERVE = """
import mmap
held = mmap.mmap(-1, 1 << 28)
try: held.madvise(mmap.MADV_NOHUGEPAGE)
except OSError: pass
for at in range(0, 1 << 28, 4096):
    held[at] = 1
    if at % (1 << 18) == 0:
        with s.span("leak"): time.sleep(0.002)
"""
# A service that writes more than its group holds, with a pause after each MiB, since a disk is slower than memory.
WRITE = """
import os, time
fd = os.open({path!r}, os.O_RDWR | os.O_CREAT)
while True:
    for at in range(128):
        os.pwrite(fd, bytes(1 << 20), at << 20)
        time.sleep(0.005)
"""


@pytest.fixture
def group(make_group):
    group = make_group("postmortem", limit_bytes=LIMIT)
    for name in ("memory.swap.max", "memory.swappiness"):
        if os.path.exists(f"{group.directory}/{name}"):
            outside.write(group, name, "0")
    return group


@pytest.fixture(params=["tmpfs", "disk"])
def ring_file(request, tmp_path):
    """Where a ring may be: on a tmpfs it is the file itself, on a disk it is copied there ten times a second."""
    if request.param == "disk":
        yield request.getfixturevalue("scratch") / "app.ring"
        return
    path = Path(f"/dev/shm/pymemcg-test-{os.getpid()}.ring")
    yield path
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()


@pytest.fixture
def service(group, make_actor, ring_file):
    """A process in the group that samples into the file."""
    actor = make_actor(group)
    actor.do(f"from pymemcg import Sampler; s = Sampler({group.spec!r}, ring_file={str(ring_file)!r}).start()")
    assert actor.do("s.role") == "sampling"
    return actor


def test_the_oom_killer(service, group, ring_file, capsys):
    """The ring names the cause, how fast usage grew, and the last second; and the kernel's count makes it almost certain."""
    time.sleep(1)
    service.send(SERVE)
    assert service.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
    recording = pymemcg.open(ring_file)
    told = postmortem(recording, boot_id=running_boot_id())
    assert told.ending.how == "oom"
    assert told.ending.certainty in ("likely", "almost certain")
    assert told.nearest.limit_bytes == LIMIT
    assert told.nearest.level == 0
    assert told.peak_bytes > 0.6 * LIMIT, "a copy may lack the last 0.2 s, in which a quarter of it is filled"
    assert told.growth[0].bytes_per_s > 0, "how fast depends on how long it was held at the limit, where it grows no more"
    seen = [step.usage_bytes for step in told.steps if step.usage_bytes is not None]
    assert seen[-1] >= seen[0]
    assert told.missing == {}
    if (kills := kernels_count(group.directory)) is not None:
        counted = postmortem(recording, oom_kills_now=kills)
        assert (counted.ending.how, counted.ending.certainty) == ("oom", "almost certain")
        assert f"last usage {told.nearest.usage_bytes / MIB:.1f} MiB of 96.0 MiB" in counted.line()
    assert main(["postmortem", "--json", str(ring_file)]) == 0
    ending = json.loads(capsys.readouterr().out)["ending"]
    assert ending["how"] == "oom"
    if ending["certainty"] == "certain":
        assert f"the kernel's log has it (pid {service.pid}): own-limit: " in ending["why"][0]
    else:
        assert main(["oom"]) == NotSupported.exit_code, "it may be read, and does not have it"
        capsys.readouterr()
    assert main(["postmortem", str(ring_file)]) == 0
    assert "the OOM killer ended it" in " ".join(capsys.readouterr().out.split())


def remake(group) -> None:
    """Remove a group, and make one of the same name."""
    before = os.stat(group.directory).st_ino
    until(lambda: not Path(group.directory, "cgroup.procs").read_text())
    os.rmdir(group.directory)
    os.mkdir(group.directory)
    assert os.stat(group.directory).st_ino != before


def next_life(group, ring_file, caplog) -> tuple[str, str]:
    """The line that the next sampler logs, and its level."""
    with caplog.at_level(logging.INFO, logger="pymemcg"), pymemcg.Sampler(group.spec, ring_file=ring_file):
        pass
    (line,) = [record for record in caplog.records if "life" in record.getMessage()]
    assert f"{ring_file}.1" in line.getMessage()
    return line.getMessage(), line.levelname


class TestTheNextStart:
    def test_after_the_oom_killer(self, service, group, ring_file, caplog):
        service.send(SERVE)
        assert service.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
        line, level = next_life(group, ring_file, caplog)
        adverb = "probably|almost certainly" if kernels_count(group.directory) is None else "almost certainly"
        assert re.search(
            rf"pid {service.pid} was killed, ({adverb}) by the OOM killer: last usage [\d.]+ MiB of 96.0 MiB", line
        )
        assert re.search(r"growth \+[\d.]+ MiB/s in 1 s", line)
        assert level == "WARNING"

    def test_in_a_group_that_was_made_anew(self, service, group, ring_file, caplog, make_group):
        """As after a container's restart: it has counted nothing, and that says nothing of the one before."""
        service.send(SERVE)
        assert service.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
        directory = group.directory
        remake(group)
        with caplog.at_level(logging.INFO, logger="pymemcg"), pymemcg.Sampler(directory, ring_file=ring_file):
            pass
        (line,) = [record.getMessage() for record in caplog.records if "life" in record.getMessage()]
        assert re.search(rf"pid {service.pid} was killed, [a-z ]+ by the OOM killer", line)

    def test_after_a_stop(self, service, group, ring_file, caplog):
        service.do("s.stop()")
        line, level = next_life(group, ring_file, caplog)
        assert "the previous life: stopped in order: last usage" in line
        assert level == "INFO"

    def test_where_there_was_none(self, group, ring_file, caplog):
        with caplog.at_level(logging.INFO, logger="pymemcg"), pymemcg.Sampler(group.spec, ring_file=ring_file):
            pass
        assert caplog.records == []

    def test_of_a_file_that_cannot_be_read(self, group, ring_file, caplog):
        ring_file.write_bytes(bytes(100_000))
        line, level = next_life(group, ring_file, caplog)
        assert "the previous life cannot be told of" in line
        assert "it begins with zeros" in line
        assert level == "WARNING"


def test_sigkill_far_from_the_limit(service, group, ring_file):
    time.sleep(1)
    service.kill()
    told = postmortem(pymemcg.open(ring_file), oom_kills_now=kernels_count(group.directory), boot_id=running_boot_id())
    assert told.ending.how == "killed"
    assert told.ending.certainty == ("likely" if kernels_count(group.directory) is None else "almost certain")
    assert not told.nearest.near
    assert told.writer_pid == service.pid
    assert told.limit_hits in (0, None)


def test_sigkill_at_the_limit_that_page_cache_fills(make_group, make_actor, scratch):
    """As by a liveness probe: the limit is hit up to the end, but what fills the group can be freed."""
    limit = 64 * MIB
    group = make_group("postmortem-cache", limit_bytes=limit)
    service, ring_file = make_actor(group), scratch / "app.ring"
    service.do(f"from pymemcg import Sampler; s = Sampler({group.spec!r}, ring_file={str(ring_file)!r}).start()")
    service.send(WRITE.format(path=str(scratch / "written")))
    until(lambda: ring_file.exists() and full_for(pymemcg.open(ring_file), 3, limit))
    service.kill()
    told = postmortem(pymemcg.open(ring_file), boot_id=running_boot_id())
    assert told.nearest.near
    how = "oom" if "on the whole machine" in told.verdict else "killed"  # of somebody else, at the same moment
    assert (told.ending.how, told.ending.certainty) == (how, "possible"), told.verdict
    assert re.search(r"; but .*[\d.]+ MiB were file pages, which can be freed\.", told.verdict)


def test_the_oom_killer_where_page_cache_filled_the_group_before(make_group, make_actor, scratch):
    """Usage does not grow then: what leaks takes the place of file pages."""
    limit = 64 * MIB
    group = make_group("postmortem-cache", limit_bytes=limit)
    for name in ("memory.swap.max", "memory.swappiness"):
        if os.path.exists(f"{group.directory}/{name}"):
            outside.write(group, name, "0")
    service, ring_file = make_actor(group), scratch / "app.ring"
    service.do(f"from pymemcg import Sampler; s = Sampler({group.spec!r}, ring_file={str(ring_file)!r}).start()")
    service.do(f"import time; f = open({str(scratch / 'written')!r}, 'wb')")
    service.do("for _ in range(100): f.write(bytes(1 << 20)), time.sleep(0.005)")
    time.sleep(2)
    service.send(SERVE.replace("0.002", "0.02"))
    assert service.process.wait(facts.PATIENCE_S) == -signal.SIGKILL
    told = postmortem(pymemcg.open(ring_file), boot_id=running_boot_id())
    assert told.ending.how == "oom", told.verdict
    assert told.ending.certainty in ("likely", "almost certain")


def full_for(recording, seconds: float, limit: int) -> bool:
    """Whether usage has been at the limit for so long."""
    rows = recording.usage.window(seconds=seconds)
    lasted = recording.usage.window()["t_ns"][[0, -1]] if len(rows) else (0, 0)
    return lasted[1] - lasted[0] > seconds * 1e9 and rows["usage_bytes"].min() > 0.9 * limit


def test_a_clean_stop(service, ring_file):
    service.do("s.stop()")
    told = postmortem(pymemcg.open(ring_file))
    assert (told.ending.how, told.ending.certainty) == ("stopped", "certain")
    assert service.end() == 0


def test_while_it_runs(service, ring_file):
    until(lambda: ring_file.exists() and pymemcg.open(ring_file).usage.head > 2)
    recording = pymemcg.open(ring_file)
    assert recording.live
    assert postmortem(recording).ending.how == "running"
    rows = recording.usage.window()["t_ns"]
    until(lambda: pymemcg.open(ring_file).usage.head > recording.usage.head)
    assert recording.usage.window()["t_ns"].tolist() == rows.tolist()
