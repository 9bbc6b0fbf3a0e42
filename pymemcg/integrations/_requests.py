# SPDX-License-Identifier: Apache-2.0
"""What a request is called and which trace it belongs to."""

from __future__ import annotations

import re
from typing import Final

MAX_PATHS: Final = 500
"""Whoever asks for random paths must not fill the service's memory: so many are told apart, and as many templates of routes.
A sampler tells 1,024 names apart."""
MAX_PATH_CHARS: Final = 120
OTHER_METHOD: Final = "(other method)"
OTHER_PATH: Final = "(other path)"

# https://www.w3.org/TR/trace-context/#traceparent-header: version-trace_id-parent_id-flags, and from 01 on perhaps more.
_FIELDS = r"(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00-{_FIELDS}|(?!00|ff)[0-9a-f]{{2}}-{_FIELDS}(?:-.*)?", re.ASCII)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"})


def trace_id(traceparent: str) -> str | None:
    """The trace's id, 32 hexadecimal digits; None where the header's value is not what W3C Trace Context defines."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] or found[2] if found else None


class Names:
    """Names of requests, "METHOD /path"; how many there are is bounded. Any thread may ask."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._left = {False: MAX_PATHS, True: MAX_PATHS}

    def name(self, method: str, path: str, *, template: bool) -> str:
        """The name of a request.

        Args:
            method: As the client sent it.
            path: The template of the route, or the path that the client asked for.
            template: Which of the two: those that a client can make up do not use up the room for the service's own.
        """
        found = self._names.get((method, path))
        return found if found is not None else self._new(method, path, template=template)

    def _new(self, method: str, path: str, *, template: bool) -> str:
        method = method if method in _METHODS else OTHER_METHOD
        if len(path) > MAX_PATH_CHARS:
            path = path[: MAX_PATH_CHARS - 1] + "…"
        if (method, path) not in self._names:
            if self._left[template] > 0:
                self._left[template] -= 1
            else:
                path = OTHER_PATH
        # A decoded path may hold a line's end, and would then write lines of its own into a log.
        shown = path if path.isprintable() else path.encode("unicode_escape").decode()
        return self._names.setdefault((method, path), f"{method} {shown}")
