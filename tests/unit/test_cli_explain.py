# SPDX-License-Identifier: Apache-2.0
"""`pymemcg explain` as a command: the page, JSON, collections."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pymemcg.cli import main
from pymemcg.explain import VERDICTS

DATA = Path(__file__).resolve().parents[1] / "data"
KERNELS = sorted(path.name for path in DATA.iterdir() if (path / "proc").is_dir())
PARTS = ("What to do", "Who says what", "What it is made of", "How far to the edge", "What happens there", "The node")


def printed(capsys, *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", ["60", "100"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_page_has_all_parts_in_order(kernel, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    page = printed(capsys, "--root", str(DATA / kernel))
    assert [line for line in page.splitlines() if line in PARTS] == list(PARTS)
    assert re.search(r"^(healthy-cache|cache-pressure|full): worth a look$", page, re.MULTILINE)
    assert "63" in page or "60.5 MiB" in page
    for line in page.splitlines():
        assert len(line) <= int(width) or not line.startswith("·")


def test_a_page_is_plain_text_where_nobody_looks(capsys):
    assert "\x1b" not in printed(capsys, "--root", str(DATA / "6.12-v2"))


def test_json_is_one_object_with_the_page(capsys):
    told = json.loads(printed(capsys, "--root", str(DATA / "6.12-v2"), "--json"))
    assert told["verdict"]["name"] in VERDICTS
    assert told["makeup"]["adds_up"] is True
    assert told["snapshot"]["levels"][0]["limits"]["max"] == 64 << 20
    assert told["snapshot"]["meanwhile"] is None  # nobody watched when the tree was captured


def test_a_target_of_a_collection_can_be_named(capsys):
    told = json.loads(printed(capsys, "cgroup:/pmc-parent", "--root", str(DATA / "6.12-v2"), "--json"))
    assert told["snapshot"]["levels"][0]["name"] == "/pmc-parent"


def test_a_target_that_a_collection_lacks_is_said(capsys):
    assert main(["explain", "cgroup:/nowhere", "--root", str(DATA / "6.12-v2")]) == 3
    assert "there is no memory group /nowhere" in capsys.readouterr().err


def test_what_is_no_collection_is_said(capsys, tmp_path):
    assert main(["explain", "--root", str(tmp_path)]) == 6
    assert "is no collection: it has no proc" in capsys.readouterr().err


def test_saved_here_it_can_be_explained_there(capsys, tmp_path):
    path = str(tmp_path / "it.tar.gz")
    here = json.loads(printed(capsys, "--json", "--save", path))
    there = json.loads(printed(capsys, "--json", "--root", path))
    for part in ("verdict", "tools", "makeup", "edge", "outcome", "machine"):
        assert there[part] == here[part]
    assert here["snapshot"]["meanwhile"]["seconds"] >= 3


def test_pss_is_read_only_where_asked(capsys):
    def pss(*arguments: str) -> str:
        page = printed(capsys, "--root", str(DATA / "6.12-v2"), *arguments)
        return re.search(r"PSS +PSS +(\S+)", page)[1]

    assert pss() == "–"
    assert pss("--pss") == "46.0"  # MiB
