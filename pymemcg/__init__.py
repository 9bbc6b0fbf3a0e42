# SPDX-License-Identifier: Apache-2.0
"""pymemcg tells a service when the kernel stalled it for memory.

Importing it loads next to nothing: each name, and each module of the reference, is loaded where it is first asked for, and is
an ordinary attribute from then on. So a command in a container that is full pays only for what it needs. No module may be
called like one of the names: importing it would put it in the name's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymemcg._version import __version__

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

if TYPE_CHECKING:
    from pymemcg.attaching import Attached, attach
    from pymemcg.cgroup import Level, Target, resolve
    from pymemcg.channel import Channel, Window
    from pymemcg.detecting import Detector, Policy, Stall, Stalls, stalls
    from pymemcg.errors import MemcgError, NotSupported, RecordingError, SourceError, TargetError
    from pymemcg.integrations.asgi import ASGIMiddleware
    from pymemcg.integrations.wsgi import WSGIMiddleware
    from pymemcg.recording import Recording, open  # noqa: A004 - as in gzip.open, and only with the module's name before it
    from pymemcg.sampler import Sampler
else:  # or type checkers would take any name for one that is here
    _NAMES = {
        "attaching": ("Attached", "attach"),
        "cgroup": ("Level", "Target", "resolve"),
        "channel": ("Channel", "Window"),
        "detecting": ("Detector", "Policy", "Stall", "Stalls", "stalls"),
        "errors": ("MemcgError", "NotSupported", "RecordingError", "SourceError", "TargetError"),
        "integrations.asgi": ("ASGIMiddleware",),
        "integrations.wsgi": ("WSGIMiddleware",),
        "recording": ("Recording", "open"),
        "sampler": ("Sampler",),
    }
    _HOMES = {name: home for home, names in _NAMES.items() for name in names}
    _MODULES = {"child", "errors", "metrics", "oom", "recorder", "schema", "watching"}

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _HOMES:
            found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            return found
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES, *_MODULES})
