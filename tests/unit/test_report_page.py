# SPDX-License-Identifier: Apache-2.0
"""Reports in a real browser: drawn, zoomed to the single row, harmless whatever is in them, and readable without scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Opened, browser
from replay import replayed
from rowwriter import held, limits, ticks, write
from test_report import HOSTILE, MIB, info, spans

import pymemcg
from pymemcg.recorder import Recorder
from pymemcg.report import html
from pymemcg.report.colours import PALETTES

FORMULA = "$$\\unknown$$"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def opened(chromium, tmp_path) -> Iterator[Callable[..., Opened]]:
    """Opens the report of a recording, or one that is there."""
    pages: list[Opened] = []

    def open_it(report: pymemcg.Recording | Path, **options: Any) -> Opened:
        if isinstance(report, pymemcg.Recording):
            path = tmp_path / "report.html"
            path.write_text(html(report), encoding="utf-8")
            report = path
        pages.append(Opened(chromium, report, **options))
        return pages[-1]

    yield open_it
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> pymemcg.Recording:
    """A second of this process's own group."""
    path = tmp_path_factory.mktemp("real") / "real.memcg"
    sampler = pymemcg.Sampler(adaptive=False)
    try:
        sampler.start()
    except pymemcg.MemcgError as error:
        pytest.skip(f"nothing can be sampled here: {error}")
    with sampler:
        if "usage_bytes" not in sampler.usage.names:
            pytest.skip(f"this group's usage cannot be measured: {sampler.absent.get('usage')}")
        with Recorder(sampler, path) as recorder:
            until = time.monotonic() + PATIENCE_S
            while recorder.write() < 1000 or sampler.stat.head < 10:
                assert time.monotonic() < until, sampler.stats()
                time.sleep(0.05)
    return pymemcg.open(path)


class Hour:
    """An hour of real rows, in one of which usage is higher than ever."""

    def __init__(self, folder: Path, source: pymemcg.Recording) -> None:
        self.at, self.peak_bytes = 0, 0
        recording = replayed(folder / "hour.memcg", source, 3600, self._spike)
        self.t_ms = recording.usage.realtime_ns(recording.usage.window()["t_ns"]) / 1e6
        self.rows = self.t_ms.size
        self.page = folder / "hour.html"
        self.page.write_text(html(recording), encoding="utf-8")

    def _spike(self, name: str, columns: dict[str, Any]) -> None:
        if name == "usage":
            usage = columns["usage_bytes"]
            self.at = int(0.4321 * usage.size)
            self.peak_bytes = int(usage.max() + 2 * (usage.max() - usage.min()) + 8 * MIB + 4096)
            usage[self.at] = self.peak_bytes
            self.around = usage[self.at - 5 : self.at + 6].copy()


@pytest.fixture(scope="module")
def hour(real, tmp_path_factory, chromium) -> Hour:
    return Hour(tmp_path_factory.mktemp("hour"), real)


@pytest.fixture
def stalled(tmp_path) -> pymemcg.Recording:
    """Four seconds with stalls of two causes, hits of two kinds of spans, limits of two levels."""
    rows = [(100 * i, 30, i % 2) for i in range(38)]
    channels = {
        "usage": ticks(4, hits=[500, 501, 1500]) | {"usage_bytes": np.linspace(20 * MIB, 64 * MIB, 4000)},
        "limits": limits((0, 0, 64, 0), (0, 1, 72, 0)),
        "reclaim": held((500, 4, 7), (1500, 20, 7), (2500, 8, 8)),
        "spans": spans(*rows),
    }
    said = {"pid": 7, "names": ["checkout", "search"], "refs": [f"r{i}" for i in range(38)]}
    return write(tmp_path / "stalled.memcg", channels, info(evidence={"trace": None}, spans=said))


def painted(opened: Opened, colour: str) -> int:
    """How many pixels of the plots have that colour."""
    from PIL import Image

    shot = Image.open(BytesIO(opened.page.locator("#plots").screenshot())).convert("RGB")
    wanted = tuple(bytes.fromhex(colour[1:]))
    return int((np.asarray(shot) == wanted).all(axis=2).sum())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_drawn_without_a_word_or_a_request(stalled, opened, scheme):
    page = opened(stalled, color_scheme=scheme).drawn()
    palette = PALETTES[scheme]
    for name in ("usage", "limit", "span"):
        assert painted(page, palette[name]) > 100, name
    assert sorted(page.rows("spans")["key"]) == ["hit"] * 2 + ["span"] * 36
    assert page.rows("stalls")["key"] == ["limit", "unknown", "limit"]
    assert (page.said, page.asked) == ([], [])
    assert page.page.locator(".bk-Figure").count() == 3
    page.page.emulate_media(color_scheme={"light": "dark", "dark": "light"}[scheme])
    page.show(*page.time())
    assert painted(page, palette["usage"]) == 0
    assert page.said == []


def test_a_spike_of_a_millisecond_in_an_hour_is_seen_and_exact(hour, opened):
    page = opened(hour.page).drawn()
    usage = page.rows("usage")
    assert len(usage["t"]) < 20_000 < hour.rows
    highest = int(np.nanargmax(usage["usage"]))
    assert usage["usage"][highest] * MIB == hour.peak_bytes
    assert usage["t"][highest] == pytest.approx(hour.t_ms[hour.at], abs=0.001)
    assert "the least and the most of every" in page.page.inner_text("#sight")
    spike = hour.t_ms[hour.at]
    page.show(spike - 6, spike + 6)
    page.page.wait_for_function("document.querySelector('#sight').innerText.includes('every row')")
    usage = page.rows("usage")
    middle = int(np.nanargmax(usage["usage"]))
    mine = (np.array(usage["usage"][middle - 5 : middle + 6]) * MIB).tolist()
    assert mine == hour.around.tolist()
    assert usage["t"][middle - 5 : middle + 6] == pytest.approx(hour.t_ms[hour.at - 5 : hour.at + 6], abs=0.001)
    assert "every row" in page.page.inner_text("#sight")
    assert (page.said, page.asked) == ([], [])


def test_an_hour_has_a_sensible_size(hour):
    assert hour.page.stat().st_size < 15_000_000


def test_all_plots_zoom_and_move_together(stalled, opened):
    page = opened(stalled).drawn()
    whole = page.time()
    plot = page.page.locator(".bk-Figure").nth(0).bounding_box()
    page.page.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] / 2)
    page.page.mouse.wheel(0, -200)
    page.page.wait_for_timeout(200)
    assert page.time() == whole, "the wheel alone is for the page"
    page.page.evaluate("scrollTo(0, 0)")
    page.page.keyboard.down("Control")
    page.page.mouse.wheel(0, -200)
    page.until(f"Bokeh.documents[0].get_model_by_name('time').start > {whole[0]}")
    page.page.keyboard.up("Control")
    start, end = page.time()
    page.page.mouse.down()
    page.page.mouse.move(plot["x"] + plot["width"] / 2 + 100, plot["y"] + plot["height"] / 2, steps=5)
    page.page.mouse.up()
    page.until(f"Bokeh.documents[0].get_model_by_name('time').start < {start}")
    moved = page.time()
    assert moved[1] - moved[0] == pytest.approx(end - start)
    axes = page.page.evaluate("Bokeh.documents[0].roots()[0].children.map(([plot]) => plot.x_range.id)")
    assert len(axes) == 3
    assert len(set(axes)) == 1
    page.show(*moved)
    for track in ("usage", "limit-0"):
        times = page.rows(track)["t"]
        assert all(a < b for a, b in pairwise(times))
        assert sum(not moved[0] <= t <= moved[1] for t in times) <= 2
    page.page.click("#whole")
    assert page.time() == whole


def test_a_click_on_a_stall_goes_there(stalled, opened):
    page = opened(stalled).drawn()
    row = page.page.locator("tr[data-from]").nth(1)
    begins, ends = float(row.get_attribute("data-from")), float(row.get_attribute("data-to"))
    assert ends - begins == pytest.approx(20, abs=0.01)
    row.click()
    start, end = page.time()
    assert start < begins < ends < end
    assert end - start < 100
    assert "limit" in page.rows("stalls")["key"]
    assert len(page.rows("stalls")["key"]) == 1


def test_without_javascript_the_main_numbers_are_there(stalled, opened):
    page = opened(stalled, java_script_enabled=False).page
    text = page.inner_text("body")
    harmful = [stall for stall in stalled.stalls() if not stall.harmless]
    for said in ("20.0 MiB to 64.0 MiB of 64.0 MiB", f"{len(harmful)} (", "20.0 ms", "checkout", "r15", "/shop", "72.0 MiB"):
        assert said in text, said
    assert "need JavaScript" in text
    assert not page.locator(".pictures").is_visible()


def test_text_from_outside_does_nothing(tmp_path, opened):
    said = {"pid": 7, "names": [HOSTILE, FORMULA], "refs": [HOSTILE, HOSTILE]}
    levels = [{"name": f"/{HOSTILE}"}, {"name": f"/{FORMULA}"}]
    channels = {
        "usage": ticks(1, hits=[500]),
        "limits": limits((0, 0, 64, 0), (0, 1, 128, 0)),
        "reclaim": held((500, 4, 7)),
        "spans": spans((498, 10, 0), (600, 10, 1)),
    }
    target = {"directory": f"/{HOSTILE}", "levels": levels}
    outside = info(target=target, host=HOSTILE, absent={HOSTILE: HOSTILE}, evidence={"trace": None}, spans=said)
    page = opened(write(tmp_path / "hostile.memcg", channels, outside)).drawn()
    spans_plot = page.page.locator(".bk-Figure").nth(2)
    begun = min(page.rows("spans")["left"])
    page.show(begun + 1, begun + 9)
    box = spans_plot.bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + 42)
    page.page.locator(".bk-Tooltip").get_by_text(HOSTILE).first.wait_for()
    assert page.page.locator("img").count() == 0
    assert page.page.title() == f"pymemcg: /{HOSTILE}"
    assert HOSTILE in page.page.inner_text("body")
    assert (page.said, page.asked) == ([], [])


def test_a_page_without_plots_is_one_of_tables(tmp_path, opened):
    page = opened(write(tmp_path / "times.memcg", {"usage": {"t_ns": ticks(1)["t_ns"]}}, {}))
    assert "Provenance" in page.page.inner_text("body")
    assert page.page.locator("script").count() == 0
    assert (page.said, page.asked) == ([], [])


def test_no_other_script_runs(stalled, opened, tmp_path):
    path = tmp_path / "changed.html"
    path.write_text(html(stalled).replace("</h1>", "</h1><script>document.title='owned'</script>"), encoding="utf-8")
    page = opened(path).drawn()
    assert page.page.title() != "owned"
    assert len(page.said) == 1
    assert "Content Security Policy" in page.said[0]
