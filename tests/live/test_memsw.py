# SPDX-License-Identifier: Apache-2.0
"""v1's limit on memory and swap together: where it is as low as that on memory, `memory.failcnt` does not count, and on some
kernels nothing does. What cannot be known is then said to be unknown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import outside
import pytest
from actor import MIB
from pressure import LIMIT, causes, is_v2, loaded, watching

from pymemcg import NotSupported, Sampler, resolve
from pymemcg.once import read_once
from pymemcg.plan import counts_memsw

pytestmark = pytest.mark.live

LOOK = """
def look(path):
    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            for at in range(0, len(view), mmap.PAGESIZE): view[at]
"""


@pytest.fixture
def data(scratch):
    """A file of more pages than the group may hold."""
    path = scratch / "data"
    with path.open("wb") as file:
        for _ in range(32):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or its pages would be charged to this process's group
    return path


@pytest.fixture
def make_limited(make_group):
    """Makes a group with a limit on memory, and one on memory and swap."""

    def make(memsw):
        group = make_group("memsw", limit_bytes=LIMIT)
        file = Path(group.directory, "memory.memsw.limit_in_bytes")
        if is_v2(group) or not file.exists():
            pytest.skip("cgroup v2, or a kernel that does not account swap: there is no limit on memory and swap together")
        outside.write(group, file.name, str(memsw))
        return group

    return make


def number(group, name):
    return int(Path(group.directory, f"memory.{name}").read_text())


def reclaim(watch, actor, data):
    """Read more than fits."""
    actor.do(LOOK + f"look({str(data)!r}); look({str(data)!r})")
    watch.settle(actor)


def doctor(group):
    done = subprocess.run(
        [sys.executable, "-m", "pymemcg", "doctor", group.spec, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_as_low_as_memorys(make_limited, make_actor, data):
    group = make_limited(LIMIT)
    actor = loaded(make_actor(group))
    with watching(group, actor.pid) as watch:
        sampler = watch.sampler
        reclaim(watch, actor, data)
        columns = sampler.usage.names
        found = watch.stalls()
    assert number(group, "max_usage_in_bytes") == LIMIT  # it was hit, whatever counts
    assert number(group, "failcnt") == 0
    counts = number(group, "memsw.failcnt") > 0
    assert "limit_hits" not in columns
    assert "memsw" in sampler.absent["limit_hits"]
    assert ("memsw_hits" in columns) == counts
    assert ("memsw_hits" in sampler.absent) == (not counts)
    assert (sampler.evidence["counters"] is None) == counts
    checks = doctor(group)
    assert checks["limit_hits"]["state"] == "no"
    assert ("memsw_hits" in checks) == (not counts)
    told = read_once(resolve(group.spec))
    assert "limit_hits" not in told
    assert ("memsw_hits" in told) == counts
    # Never a cause that nothing was seen of: not that of somebody else, nor none.
    assert found or sampler.evidence["trace"] or not counts
    assert causes(found).keys() <= ({"limit"} if counts else {"unknown"}) | {"thrash", "swap"}
    if watch.truth is not None:
        assert watch.truth.total_us > 0
        assert causes(watch.stalls("trace")).keys() == {"limit" if counts else "unknown"}


def test_counters_as_evidence(make_limited, make_actor, data):
    group = make_limited(LIMIT)
    actor = loaded(make_actor(group))
    if counts_memsw(os.uname().release):
        with watching(group, actor.pid, evidence="counters") as watch:
            reclaim(watch, actor, data)
            assert causes(watch.stalls("counters")).keys() == {"limit"}
        assert number(group, "memsw.failcnt") > 0
    else:
        with pytest.raises(NotSupported, match="memsw"):
            Sampler(group.spec, evidence="counters").start()
        actor.do(LOOK + f"look({str(data)!r})")
        assert number(group, "memsw.failcnt") == 0


def test_higher_than_memorys(make_limited, make_actor, data):
    group = make_limited(LIMIT + MIB)
    actor = loaded(make_actor(group))
    with watching(group, actor.pid) as watch:
        reclaim(watch, actor, data)
        columns = watch.sampler.usage.names
        assert causes(watch.stalls("counters")).keys() == {"limit"}
    assert number(group, "failcnt") > 0
    assert "limit_hits" in columns
    # Only swap makes memory and swap more than memory, so nothing was hit; but a column is of a counter that counts.
    assert number(group, "memsw.failcnt") == 0
    assert ("memsw_hits" in columns) == ("memsw_hits" not in watch.sampler.absent)
