# SPDX-License-Identifier: Apache-2.0
"""A fleet report of a data set that real samplers wrote tells what their recordings tell."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
from actor import until

import pymemcg
from pymemcg import Sampler
from pymemcg.export.dataset import DataSet
from pymemcg.fleet import report
from pymemcg.recorder import Recorder

pytestmark = pytest.mark.live

MIB = 1 << 20
FILL = (
    "f = open('{path}', 'wb')\n"
    "for _ in range(64): f.write(bytes(1 << 20)); f.flush(); os.fdatasync(f.fileno())\n"  # clean pages can be reclaimed
    "f.close()"
)


def test_two_squeezed_groups_of_one_host(make_group, make_actor, scratch, tmp_path):
    """One without tracepoints, and one with spans that were hit."""
    groups = [make_group(name, limit_bytes=32 * MIB) for name in ("fleet-a", "fleet-b")]
    actors = [make_actor(group) for group in groups]
    recordings = []
    for group, actor, evidence in zip(groups, actors, ("auto", "psi"), strict=True):
        try:
            sampler = Sampler(group.spec, adaptive=False, evidence=evidence).start()
        except pymemcg.NotSupported as error:
            pytest.skip(str(error))
        path = tmp_path / f"{len(recordings)}.memcg"
        with ExitStack() as stack:
            stack.enter_context(sampler)
            recorder = stack.enter_context(Recorder(sampler, path))
            written = stack.enter_context(DataSet(sampler, tmp_path / "set"))
            for number in range(3):
                with sampler.span("squeeze", ref=number):
                    actor.do(FILL.format(path=scratch / "pages"))
                written.write()
            until(lambda sampler=sampler, head=sampler.usage.head: sampler.usage.head > head + 100)
            sampler.stop()  # so that both have the same rows
            recorder.write()
        recordings.append(pymemcg.open(path))
    told = report(tmp_path / "set", workers=2)
    rows = told.stalls.to_pylist()
    assert [row["host"] for row in told.targets] == 2 * [os.uname().nodename]
    for recording in recordings:
        target = recording.info["target"]["levels"][0]["name"]
        plain = recording.stalls()
        assert len(plain) > 0, "it was squeezed"
        mine = [row for row in rows if row["target"] == target]
        assert [(row["start_ns"], row["end_ns"], row["stall_ns"], row["cause"]) for row in mine] == [
            (stall.start_ns, stall.end_ns, stall.stall_ns, stall.cause) for stall in plain
        ]
        (row,) = [row for row in told.targets if row["target"] == target]
        assert row["span_hits"] == len(recording.hits(min_ns=1_000_000))
        times = recording.usage.window()["t_ns"]
        assert row["sampled_ns"] == pytest.approx(int(times[-1] - times[0]), rel=0.1), "it began a little later"
