# SPDX-License-Identifier: Apache-2.0
"""A real browser that opens pages, and what it had to say of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 600_000 if os.environ.get("PYMEMCG_VM") else 60_000  # on booted kernels a minute did not do to load a page
DRAWN = "window.Bokeh && Bokeh.documents.length == 1 && Bokeh.documents[0].is_idle"


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window; skips where there is none."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"there is no browser here: none of {', '.join(BROWSERS)} is in PATH")
    with sync_playwright() as playwright:
        options = ["--no-sandbox"]  # as root it has none
        running = playwright.chromium.launch(executable_path=path, args=options, timeout=PATIENCE_MS)
        try:
            yield running
        finally:
            running.close()


class Opened:
    """A page that was opened from a file.

    Attributes:
        page: Playwright's.
        said: What its console and its errors said, but for plain notes.
        asked: Where it asked for something, its own file excepted.
    """

    def __init__(self, chromium: Any, path: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._context = chromium.new_context(viewport={"width": 1200, "height": 900}, **options)
        self._context.set_default_timeout(PATIENCE_MS)
        self.page = self._context.new_page()
        self.page.on("console", lambda said: self.said.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.asked.remove(path.as_uri())

    def drawn(self) -> Opened:
        """When its plots are drawn."""
        self.until(DRAWN)
        return self

    def until(self, expression: str) -> None:
        """Wait for it to be true. Playwright's own wait would have the page evaluate text, which its policy forbids."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"{expression}; {self.said}"
            time.sleep(0.02)

    def show(self, start_ms: float, end_ms: float) -> None:
        """Choose what is in sight, and wait until the plots show it."""
        self.page.evaluate(
            "([start, end]) => new Promise((done) => {"
            "  Bokeh.documents[0].get_model_by_name('time').setv({start, end});"
            "  requestAnimationFrame(() => requestAnimationFrame(done));"
            "})",
            [start_ms, end_ms],
        )

    def rows(self, track: str) -> dict[str, list[Any]]:
        """What is drawn of a track: its columns."""
        read = "(name) => Object.fromEntries([...Object.entries(Bokeh.documents[0].get_model_by_name(name).data)]"
        read += ".map(([column, values]) => [column, Array.from(values)]))"
        return self.page.evaluate(read, track)

    def time(self) -> tuple[float, float]:
        """What is in sight, ms since 1970."""
        start, end = self.page.evaluate(
            "(() => { const t = Bokeh.documents[0].get_model_by_name('time'); return [t.start, t.end] })()"
        )
        return start, end

    def close(self) -> None:
        self._context.close()
