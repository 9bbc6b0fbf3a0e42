# SPDX-License-Identifier: Apache-2.0
"""What a sampler tells before its start, after its end, and once it has taken over."""

from __future__ import annotations

import inspect

import pytest
from actor import files, until

from pymemcg import MemcgError, Sampler, schema

pytestmark = pytest.mark.live


def test_before_the_start_there_is_no_channel():
    sampler = Sampler()
    assert not any(hasattr(sampler, name) for name in schema.CHANNELS)
    assert getattr(sampler, "usage", None) is None
    with pytest.raises(MemcgError, match=r"no usage before start\(\)"):
        _ = sampler.usage
    inspect.getmembers(sampler)
    assert (sampler.stats(), sampler.absent) == ({}, {})


def test_it_can_be_shown_at_any_time(group):
    sampler = Sampler(group.spec, history_s=1)
    assert "stopped" in repr(sampler)
    with sampler:
        assert "sampling" in repr(sampler)
    assert "stopped" in repr(sampler)
    refused = Sampler.__new__(Sampler)
    with pytest.raises(ValueError, match="rate_hz"):
        refused.__init__(rate_hz=0)
    assert "stopped" in repr(refused)


def test_after_the_end_the_last_is_known(group):
    with Sampler(group.spec, history_s=1) as sampler:
        until(lambda: sampler.usage.head > 20)
        running, absent = sampler.stats(), sampler.absent
    stopped = sampler.stats()
    assert stopped.keys() == running.keys()
    assert stopped["role"] == "stopped"
    assert stopped["ticks"] >= running["ticks"] > 0
    assert stopped["writer_pid"] == running["writer_pid"]
    assert stopped["held_bytes"] == running["held_bytes"]
    assert stopped["late_ns"]["max"] > 0
    assert absent
    assert sampler.absent == absent
    with sampler:
        assert sampler.stats()["role"] == "sampling"


def test_stopping_does_not_load_numpy(group, make_actor):
    actor = make_actor(group)
    actor.do("from pymemcg import Sampler; s = Sampler(history_s=1).start(); s.stop()")
    assert actor.do("'numpy' in sys.modules") is False


def test_who_has_taken_over_sees_its_own_memory(group, make_actor):
    first, second = make_actor(group), make_actor(group)
    for actor in (first, second):
        actor.do("from pymemcg import Sampler; s = Sampler(history_s=5).start()")
    second.do("ballast = bytearray(b'x') * (96 << 20); before = s.usage; names = before.names")
    assert second.do("'rss_bytes' in names") is False
    first.kill()
    until(lambda: second.do("s.role") == "sampling")
    head = second.do("s.usage.head")
    until(lambda: second.do("s.usage.head") > head)
    assert second.do("int(s.usage.window(rows=1)['rss_bytes'][0])") > 96 << 20
    assert second.do("before.names == names"), "windows of before have as many columns as ever"
    assert any("statm" in path for path in files(second.pid))
