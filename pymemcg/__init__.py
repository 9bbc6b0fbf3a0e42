# SPDX-License-Identifier: Apache-2.0
"""pymemcg tells a service when the kernel stalled it for memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymemcg._version import __version__
from pymemcg.attaching import Attached, attach
from pymemcg.cgroup import Level, Target, resolve
from pymemcg.channel import Channel, Window
from pymemcg.detecting import Detector, Policy, Stall, Stalls, stalls
from pymemcg.errors import MemcgError, NotSupported, RecordingError, SourceError, TargetError
from pymemcg.recording import Recording, open  # noqa: A004 - as in gzip.open, and only with the module's name before it
from pymemcg.sampler import Sampler

if TYPE_CHECKING:
    from pymemcg.integrations.asgi import ASGIMiddleware
    from pymemcg.integrations.wsgi import WSGIMiddleware

__all__ = [
    "ASGIMiddleware",
    "Attached",
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
    "WSGIMiddleware",
    "Window",
    "__version__",
    "attach",
    "open",
    "resolve",
    "stalls",
]


def __getattr__(name: str) -> Any:
    if name == "ASGIMiddleware":
        from pymemcg.integrations.asgi import ASGIMiddleware

        return ASGIMiddleware
    if name == "WSGIMiddleware":
        from pymemcg.integrations.wsgi import WSGIMiddleware

        return WSGIMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
