# SPDX-License-Identifier: Apache-2.0
"""The documentation says what is so: its code runs, its file format is the compiler's, and the reference leaves no name out."""

from __future__ import annotations

import re
import shlex
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pymemcg
from pymemcg._ffi import ffi, lib
from pymemcg.cli import make_parser
from pymemcg.recorder import Recorder

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
CODE = re.compile(r"^```python(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
TITLED = {(page, found["title"]) for page in PAGES for found in CODE.finditer((DOCS / page).read_text()) if found["title"]}
COMMAND = re.compile(r"^\$ pymemcg (.+)$", re.MULTILINE)
COMMANDS_SHOWN = sorted({line for page in PAGES for line in COMMAND.findall((DOCS / page).read_text())})
ROWS = {"usage": 20, "stat": 2}
PATIENCE_S = 30


def code_of(page: str, title: str | None = None) -> list[str]:
    """The Python blocks of a page; those with a title are files of their own."""
    return [textwrap.dedent(found["code"]) for found in CODE.finditer((DOCS / page).read_text()) if found["title"] == title]


def run(code: str, name: str, namespace: dict[str, object]) -> None:
    exec(compile(code, name, "exec"), namespace)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A real recording, named as the pages name it."""
    path = tmp_path_factory.mktemp("docs") / "run.memcg"
    sampler = pymemcg.Sampler(adaptive=False)
    try:
        sampler.start()
    except pymemcg.MemcgError as error:
        pytest.skip(f"nothing can be sampled here: {error}")
    with sampler:
        if "usage_bytes" not in sampler.usage.names:
            pytest.skip(f"this group's usage cannot be measured: {sampler.absent.get('usage')}")
        with Recorder(sampler, path) as recorder:
            begun = {name: getattr(sampler, name).head for name in ROWS}
            until = time.monotonic() + PATIENCE_S
            while any(getattr(sampler, name).head < begun[name] + rows for name, rows in ROWS.items()):
                assert time.monotonic() < until, sampler.stats()
                time.sleep(0.05)
            recorder.write()
    return path


@pytest.fixture
def beside_recording(recording, monkeypatch):
    """Pages open their files in the working directory."""
    monkeypatch.chdir(recording.parent)


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)])
def test_code_runs(page, beside_recording):
    namespace: dict[str, object] = {"__name__": page}
    for code in code_of(page):
        run(code, page, namespace)


@pytest.mark.parametrize("page", ["embedding.md", "getting-started.md"])
def test_a_services_code_runs_where_sampling_is_switched_off(page, beside_recording, monkeypatch):
    """PYMEMCG_DISABLE=1 is for emergencies: what was written after these examples must go on."""
    monkeypatch.setenv("PYMEMCG_DISABLE", "1")
    test_code_runs(page, beside_recording)


def test_the_readmes_code_runs_there_too(monkeypatch):
    monkeypatch.setenv("PYMEMCG_DISABLE", "1")
    (code,) = [found["code"] for found in CODE.finditer((DOCS.parent / "README.md").read_text())]
    run(code, "README.md", {})


def test_a_services_endpoint_answers_there_too(monkeypatch):
    pytest.importorskip("fastapi")
    (code,) = (code for page, title in TITLED for code in code_of(page, title) if "fastapi" in code)
    monkeypatch.setenv("PYMEMCG_DISABLE", "1")
    service: dict[str, object] = {"__name__": "service"}
    run(code, "service", service)
    with pymemcg.Sampler() as sampler:
        request = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(memory=sampler)))
        answer = service["memory"](request)
    assert (answer["role"], answer["rows"], answer["usage_bytes_max"]) == ("disabled", 0, None)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_to_be_measured(page):
    assert "Not measured yet" not in (DOCS / page).read_text()


@pytest.mark.parametrize(("page", "title"), sorted(TITLED))
def test_files_run(page, title, recording):
    (code,) = code_of(page, title)
    if "fastapi" in code:
        pytest.importorskip("fastapi")
    run(code, title, {"__name__": title})


def test_gunicorns_hooks_sample(recording):
    (code,) = code_of("embedding.md", "gunicorn.conf.py")
    hooks: dict[str, object] = {}
    run(code, "gunicorn.conf.py", hooks)
    worker = SimpleNamespace()
    hooks["post_fork"](None, worker)
    assert worker.memory.usage.head > 0
    hooks["worker_exit"](None, worker)
    assert worker.memory.role == "stopped"


def test_numpy_alone_reads_what_pymemcg_reads(recording, beside_recording):
    namespace: dict[str, object] = {}
    (code,) = code_of("file-format.md")
    run(code, "file-format.md", namespace)
    assert "pymemcg" not in code.replace('b"PYMEMCG"', "")
    expected = pymemcg.open(recording)
    info, channels = namespace["info"], namespace["channels"]
    assert info == expected.info
    assert len(channels["usage"]["t_ns"]) >= ROWS["usage"]
    for name, columns in channels.items():
        channel = getattr(expected, name)
        window = channel.window()
        assert list(columns) == list(channel.names)
        for column, values in columns.items():
            assert values.tolist() == window[column].tolist()


def tables(heading: str) -> list[tuple[int, int, str]]:
    """Rows (offset, bytes, field) of the table below a heading of the file format's page."""
    section = (DOCS / "file-format.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [(int(a), int(b), c) for a, b, c in re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", section, re.MULTILINE)]


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("Header", "struct memcg_ring_header"),
        ("Channel table", "struct memcg_channel_header"),
        ("Column table", "struct memcg_column_header"),
        ("State", "struct memcg_state"),
    ],
)
def test_layout_is_the_compilers(heading, struct):
    fields = [(field.offset, ffi.sizeof(field.type), name) for name, field in ffi.typeof(struct).fields]
    assert tables(heading) == fields
    offset, size, _ = fields[-1]
    assert ffi.sizeof(struct) == offset + size  # nothing hidden at the end


def test_constants_are_the_cores():
    text = (DOCS / "file-format.md").read_text()
    assert f"at most {lib.MEMCG_CHANNELS} |" in text
    assert f"how many, at most {lib.MEMCG_CHANNEL_COLUMNS} |" in text
    assert f"| `version` | {lib.MEMCG_RING_VERSION};" in text
    assert f"0x{lib.MEMCG_RING_BYTE_ORDER:08x}" in text
    kinds = [int(kind) for kind in re.findall(r"^\| (\d+) \| [a-z]", text.split("\n## Events\n")[1], re.MULTILINE)]
    assert kinds == sorted(getattr(lib, name) for name in dir(lib) if name.startswith("MEMCG_EVENT_"))


def test_reference_leaves_no_name_out():
    shown = set(re.findall(r"^::: ([\w.]+)$", "\n".join((DOCS / page).read_text() for page in PAGES), re.MULTILINE))
    for name in set(pymemcg.__all__) - {"__version__"}:
        defined_in = getattr(pymemcg, name).__module__
        assert {f"pymemcg.{name}", defined_in} & shown, name
    assert {"pymemcg.metrics", "pymemcg.schema"} <= shown


@pytest.mark.parametrize("line", COMMANDS_SHOWN)
def test_commands_have_these_arguments(line):
    assert make_parser().parse_args(shlex.split(line)).run
