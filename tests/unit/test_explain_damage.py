# SPDX-License-Identifier: Apache-2.0
"""Collections that no kernel wrote: explained with what is left, or refused in words, and never read elsewhere."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from pymemcg.errors import MemcgError, RecordingError
from pymemcg.explain import explain, opened, take
from pymemcg.explain._tree import NOTES, wanted

DATA = Path(__file__).resolve().parents[1] / "data"
_KILL = {"cause": "limit", "pid": 7, "name": "x", "oom_memcg": "/a", "task_memcg": "/a", "seconds": 1.5}
_WORDS = (b"x", b"-1", b"0", b" ", b"\n", b"\0", b"..", b"9" * 26, b"9" * 5000, b"\xff", b":", b"")


@pytest.fixture(params=["6.12-v2", "6.1-v1", "6.18-hybrid"])
def folder(request, tmp_path):
    """A captured tree, in a copy."""
    source = DATA / request.param
    return shutil.copytree(source, tmp_path / "it")


def told(folder: Path) -> str | None:
    """The explanation as JSON; None where the collection is refused."""
    try:
        with opened(str(folder)) as tree:
            return json.dumps(explain(take(tree)).to_dict(), allow_nan=False)
    except MemcgError:
        return None


def damaged(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    kind = dice.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + dice.choice(_WORDS) + data[at:]
    if kind == 2:
        return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
    words = data.split(b" ")
    words[dice.randrange(len(words))] = dice.choice(_WORDS)
    return b" ".join(words)


def test_damage_is_said_or_left_out(folder):
    for file in list(folder.rglob("*")):
        if file.is_file() and not wanted(str(file.relative_to(folder))):
            file.unlink()
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    whole = {file: file.read_bytes() for file in files}
    dice = random.Random(20260)
    explained = 0
    for _ in range(50):
        for file in dice.sample(files, 3):
            file.write_bytes(damaged(whole[file], dice))
        explained += told(folder) is not None
        for file, data in whole.items():
            if file.stat().st_size != len(data) or file.read_bytes() != data:
                file.write_bytes(data)
    assert explained > 10


@pytest.mark.parametrize(
    "notes",
    [
        {"target": 5},
        {"target": ""},
        {"target": "cgroup:/a\0b"},
        {"own": 1},
        {"taken_realtime_ns": "now"},
        {"taken_realtime_ns": 10**26},
        {"page_bytes": 0},
        {"page_bytes": True},
        {"kills": {}},
        {"kills": [{}]},
        {"kills": [_KILL | {"more": 1}]},
        {"kills": [_KILL | {"pid": "7"}]},
        {"kills": [_KILL | {"seconds": float("nan")}]},
        {"meanwhile": {}},
        {"meanwhile": {"seconds": 3}},
        {"meanwhile": []},
    ],
)
def test_notes_that_are_not_ours_are_said(notes, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / NOTES).write_text(json.dumps({"format": 1} | notes))
    with pytest.raises(RecordingError, match=f"has a {NOTES} that is none of ours"), opened(str(tmp_path)):
        pass


def test_notes_of_ours_are_taken(tmp_path):
    shutil.copytree(DATA / "6.12-v2", tmp_path / "it")
    (tmp_path / "it" / NOTES).write_text(json.dumps({"format": 1, "kills": [_KILL], "meanwhile": None, "page_bytes": 4096}))
    with opened(str(tmp_path / "it")) as tree:
        assert take(tree).kills[0].name == "x"


@pytest.mark.parametrize("target", ["cgroup:/../..", "/../../etc", "/proc/self/../../../etc", "cgroup:/a/../../.."])
def test_a_target_leads_nowhere_else(target):
    with opened(str(DATA / "6.12-v2")) as tree, pytest.raises(MemcgError):
        take(tree, target)


def test_a_mount_leads_nowhere_else(tmp_path):
    folder = shutil.copytree(DATA / "6.12-v2", tmp_path / "it")
    mounts = folder / "proc/PID/mountinfo"
    mounts.write_text(mounts.read_text().replace(" /sys/fs/cgroup ", " /../../sys/fs/cgroup "))
    with pytest.raises(RecordingError, match="has a mount at"), opened(str(folder)):
        pass
