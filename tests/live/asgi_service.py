# SPDX-License-Identifier: Apache-2.0
"""The service of test_services.py as an ASGI application."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from service import OPTIONS, answer, cpu_wait_ns, told, touch

import pymemcg

app = FastAPI()
if OPTIONS is not None:
    app.add_middleware(pymemcg.ASGIMiddleware, **OPTIONS)
included = APIRouter(prefix="/v1")


@app.get("/loop/{kib}")
async def loop(kib: int) -> dict[str, int]:
    return touch(kib)


@included.get("/pool/{kib}")
def pool(kib: int) -> dict[str, int]:
    return touch(kib)


@app.get("/idle/{ms}")
async def idle(ms: int) -> dict[str, int]:
    start_ns, waited_ns = time.monotonic_ns(), cpu_wait_ns()
    await asyncio.sleep(ms / 1e3)
    return answer(start_ns, waited_ns)


@app.get("/sampler")
async def sampler(request: Request) -> dict[str, Any]:
    return told(request.scope["pymemcg.sampler"])


app.include_router(included, prefix="/api")
