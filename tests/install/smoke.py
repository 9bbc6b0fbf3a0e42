# SPDX-License-Identifier: Apache-2.0
"""What an installed wheel must do anywhere: import without numpy, sample its own group, hand out uncopied arrays."""

from __future__ import annotations

import platform
import sys
import time

import pymemcg

with pymemcg.Sampler() as sampler:
    assert "numpy" not in sys.modules, "the first array imports numpy, and nothing before it"
    time.sleep(0.2)
    window = sampler.usage.window(seconds=1)
    times = window["t_ns"]
    usage = window["usage_bytes"]

assert len(times) == len(usage) >= 2, f"{len(times)} rows in 200 ms"
assert (times[1:] > times[:-1]).all(), "times must rise"
assert (usage > 0).all(), "a group in which this runs uses memory"
assert not usage.flags.writeable, "an array of the ring must be read-only"
assert not usage.flags.owndata, "an array of the ring must be a view of it"
print(f"CPython {platform.python_version()}: pymemcg {pymemcg.__version__}, {len(times)} rows")
