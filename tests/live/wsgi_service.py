# SPDX-License-Identifier: Apache-2.0
"""The service of test_services.py as a WSGI application."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from service import OPTIONS, answer, cpu_wait_ns, told, touch

import pymemcg


def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    _, what, *arguments = environ["PATH_INFO"].split("/")
    if what == "touch":
        found: dict[str, Any] = touch(int(arguments[0]))
    elif what == "idle":
        start_ns, waited_ns = time.monotonic_ns(), cpu_wait_ns()
        time.sleep(int(arguments[0]) / 1e3)
        found = answer(start_ns, waited_ns)
    else:
        found = told(environ["pymemcg.sampler"])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]


app = pymemcg.WSGIMiddleware(serve, **OPTIONS) if OPTIONS is not None else serve
