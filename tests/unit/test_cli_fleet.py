# SPDX-License-Identifier: Apache-2.0
"""`pymemcg fleet report` as people and programs read it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fleetset import captured, put
from pyarrow import parquet as pq

from pymemcg.cli import main
from pymemcg.fleet import report

INSIDE = {"target": {"directory": "/sys/fs/cgroup", "levels": [{"name": "/"}]}}
"""What a container sees of its group."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    put(folder / "set", captured(folder / "traced.memcg", "bursts"), host="shop-1", run="1" * 12, info=INSIDE)
    bare = captured(folder / "bare.memcg", "bursts", trace=False, psi=False)
    put(folder / "set", bare, host="search-1", run="2" * 12, info=INSIDE)
    return folder / "set"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def command(*words) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "pymemcg", "fleet", "report", *map(str, words)]


def test_as_text(dataset, capsys):
    assert main(["fleet", "report", str(dataset)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("2 targets on 2 hosts, sampled for 28 s in all\n")
    lines = [line.split() for line in text.splitlines()]
    services = [words[:2] for words in lines if words[:1] in (["shop"], ["search"])]
    assert services == [["shop", "1"], ["search", "1"]], "what is known to have been stalled comes first"
    assert "search-1 222222222222: no PSI: no PSI" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_one_target_is_one(tmp_path, capsys):
    put(tmp_path / "set", captured(tmp_path / "one.memcg", "bursts"), host="shop-1", run="1" * 12, info=INSIDE)
    assert main(["fleet", "report", str(tmp_path / "set")]) == 0
    assert capsys.readouterr().out.startswith("1 target on 1 host, sampled for ")


def test_a_program_reads_the_same(dataset, tmp_path):
    done = subprocess.run(
        command(dataset, "--json", "--parquet", tmp_path / "stalls.parquet", "--engine", "dask"),
        capture_output=True,
        text=True,
        check=True,
    )
    told = report(dataset, workers=1)
    assert done.stderr == ""
    assert json.loads(done.stdout) == told.to_dict()
    assert pq.read_table(tmp_path / "stalls.parquet").to_pylist() == told.stalls.to_pylist()
    assert [path.name for path in tmp_path.iterdir()] == ["stalls.parquet"]


def test_errors(dataset, tmp_path, capsys):
    assert main(["fleet", "report", str(tmp_path)]) == 6
    assert "has no files CHANNEL/host=HOST" in capsys.readouterr().err
    assert main(["fleet", "report", str(dataset), "--parquet", str(tmp_path / "no/stalls.parquet")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["fleet"])


def test_where_duckdb_is_not_installed():
    program = "import sys; sys.modules['duckdb'] = None; from pymemcg.cli import main; sys.exit(main(['fleet', 'report', '/']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "pip install 'pymemcg[fleet]'" in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_it_ends_when_it_is_asked_to(dataset, tmp_path, name):
    """Its workers end with it, and nothing is left behind."""
    part = tmp_path / "stalls.parquet"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command(dataset, "--parquet", part), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        until = time.monotonic() + 30
        children: list[str] = []
        while len(children) < 3 and time.monotonic() < until and process.poll() is None:
            with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
                children = file.read().split()
            time.sleep(0.01)
        time.sleep(0.5)  # a worker that is only being started says that its start broke off
        process.send_signal(getattr(signal, name))
        assert process.wait(30) == 128 + getattr(signal, name)
        assert process.stdout.read() == ""
        assert "Traceback" not in process.stderr.read()
    assert len(children) > 1
    while any(map(lives, children)) and time.monotonic() < until:
        time.sleep(0.01)  # Python's resource tracker ends when it notices that nobody is left
    assert not any(map(lives, children))
    assert list(tmp_path.iterdir()) == []


def lives(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
