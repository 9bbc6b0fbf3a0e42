# SPDX-License-Identifier: Apache-2.0
"""pymemcg tells a service when the kernel stalled it for memory."""

from __future__ import annotations

from pymemcg._version import __version__
from pymemcg.cgroup import Level, Target, resolve
from pymemcg.channel import Channel, Window
from pymemcg.errors import MemcgError, NotSupported, RecordingError, SourceError, TargetError
from pymemcg.recording import Recording, open  # noqa: A004 - as in gzip.open, and only with the module's name before it
from pymemcg.sampler import Sampler
from pymemcg.stalls import Detector, Policy, Stall, Stalls, stalls

__all__ = [
    "Channel",
    "Detector",
    "Level",
    "MemcgError",
    "NotSupported",
    "Policy",
    "Recording",
    "RecordingError",
    "Sampler",
    "SourceError",
    "Stall",
    "Stalls",
    "Target",
    "TargetError",
    "Window",
    "__version__",
    "open",
    "resolve",
    "stalls",
]
