# SPDX-License-Identifier: Apache-2.0
"""`pymemcg oom`: text, JSON, files, pipes, logs that grow, and what is no log."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pymemcg.cli import main
from pymemcg.errors import MemcgError, NotSupported, SourceError
from pymemcg.oom._logs import of_record

DATA = Path(__file__).parent.parent / "data"
LOG = DATA / "6.12-v2" / "dmesg-oom.txt"
PASTED = DATA / "oom" / "kubernetes-host-with-line-numbers.txt"
COMMAND = [sys.executable, "-m", "pymemcg", "oom"]


def test_in_words(capsys):
    assert main(["oom", str(LOG)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("python3 (pid 216) was killed 12.961 s after the machine had started cause own-limit: ")
    assert "asked python3 (pid 216, the victim itself), GFP_KERNEL" in said
    assert "victim anon 1.2 MiB, file 6.5 MiB, shared 55.6 MiB" in said
    assert "its group it ended with this process: it was the only process of its group" in said
    assert "64.0 MiB of 64.0 MiB in use, at the limit 78,980 times; swap 127.9 MiB (no limit)" in said
    assert "file 61.5 MiB (file_mapped 55.7 MiB, shmem 61.5 MiB)" in said
    assert said.endswith(f"1 OOM kill in 101 lines of {LOG}")


def test_what_a_cut_line_lacks_is_a_dash(tmp_path, capsys):
    path = tmp_path / "log"
    text, count = re.subn(r"(\[ +216\] +0 .*) 0 python3$", r"\1", LOG.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)
    assert main(["oom", str(path)]) == 0
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if " 216 " in line and "(" not in line]
    assert (row[:3], row[-1]) == (["–", "216", "–"], "–")


@pytest.mark.parametrize(
    ("group", "word"),
    [
        ("/system.slice/nginx.service", "its group"),
        ("/user.slice/user-1000.slice/session-2.scope", "its group"),
        ("/docker/0a1b", "container"),
        ("/kubepods/burstable/podA/c1", "container"),
        ("/machine.slice/libpod-1.scope", "container"),
        (f"/x/{'0123456789abcdef' * 4}", "container"),
        ("/ecs-agent/9781c248-0edd-4cdb-9a93-f63cb662a5d3", "container"),
    ],
)
def test_a_group_is_called_a_container_where_its_path_is_one_s(group, word, tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text(LOG.read_text().replace("/pmc-parent/pmc-child", group))
    assert main(["oom", str(path)]) == 0
    assert f" {word} it ended with this process" in " ".join(capsys.readouterr().out.split())


def test_what_is_not_in_the_log_is_not_said(capsys):
    assert main(["oom", str(PASTED)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "asked" not in said
    assert "python 27220 – 63.8 GiB 0 B 128.5 MiB -998" in said
    assert main(["oom", "--json", str(PASTED)]) == 0
    kill = json.loads(capsys.readouterr().out)
    assert (kill["cause"], kill["pid"], kill["name"]) == ("parent-limit", 27220, "python")
    assert (kill["order"], kill["anon_rss_bytes"]) == (None, None)
    assert kill["task_memcg"].startswith(f"{kill['oom_memcg']}/docker-")


def test_one_object_a_line(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_bytes(LOG.read_bytes() * 3)
    assert main(["oom", "--json", str(path)]) == 0
    assert [json.loads(line)["pid"] for line in capsys.readouterr().out.splitlines()] == [216] * 3


def test_no_kill(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text("[1.0] all is well\n")
    assert main(["oom", str(path)]) == 0
    assert capsys.readouterr().out == f"No OOM kills in 1 lines of {path}\n"


def test_a_name_that_would_write_to_the_terminal(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text(LOG.read_text().replace("(python3)", "(\x1b]0;x\x07)"))
    assert main(["oom", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_pipe():
    done = subprocess.run([*COMMAND, "--json", "-"], input=LOG.read_bytes().rstrip(b"\n"), capture_output=True, check=True)
    assert json.loads(done.stdout)["pid"] == 216


def test_a_full_container_can_run_it():
    code = (
        "import sys; from pymemcg.cli import main; main()\n"
        "heavy = {'numpy', 'rich', 'rich_argparse', 'logging', 'shutil', 'subprocess', 'asyncio', 'ctypes'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "oom", str(LOG)], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.fixture
def following(tmp_path):
    """`--follow` of a file that is empty at first."""
    path = tmp_path / "kern.log"
    path.touch()
    process = subprocess.Popen([*COMMAND, "--json", "--follow", str(path)], stdout=subprocess.PIPE, text=True)
    late = threading.Timer(60, process.kill)  # or a line that does not come is waited for for ever
    late.start()
    with process:
        yield path, process
        late.cancel()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT


def test_a_log_that_grows_and_is_rotated(following):
    path, process = following
    with path.open("ab") as file:
        file.write(LOG.read_bytes()[:3000])
        file.flush()
        file.write(LOG.read_bytes()[3000:])
    assert json.loads(process.stdout.readline())["pid"] == 216
    path.rename(path.with_suffix(".1"))
    path.write_bytes((DATA / "6.1-v2" / "dmesg-oom.txt").read_bytes())
    assert json.loads(process.stdout.readline())["pid"] == 182
    os.truncate(path, 0)
    with path.open("ab") as file:  # cut, and the line that is missing at its end does not come any more
        file.writelines(LOG.read_bytes().splitlines(keepends=True)[-5:-1])
    told = json.loads(process.stdout.readline())
    assert (told["pid"], told["anon_rss_bytes"]) == (216, None)


def test_a_log_that_comes_slowly(following):
    """What is not whole yet is not told."""
    path, process = following
    with path.open("ab", buffering=0) as file:
        for line in LOG.read_bytes().splitlines(keepends=True)[-5:]:
            file.write(line)
            time.sleep(0.6)
    told = json.loads(process.stdout.readline())
    assert (told["cause"], told["pid"], len(told["candidates"])) == ("own-limit", 216, 1)


def test_what_came_last_before_a_rotation(following):
    path, process = following
    with path.open("ab") as file:
        file.write((DATA / "6.1-v2" / "dmesg-oom.txt").read_bytes())
    assert json.loads(process.stdout.readline())["pid"] == 182, "it reads now"
    with path.open("ab") as file:
        file.write(LOG.read_bytes())
    path.rename(path.with_suffix(".1"))
    path.touch()
    assert json.loads(process.stdout.readline())["pid"] == 216


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A journalctl that prints what it is given, where the kernel's buffer may not be read."""

    def make(says):
        (tmp_path / "says").write_bytes(says)
        program = tmp_path / "journalctl"
        program.write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/says\n")
        program.chmod(0o755)
        monkeypatch.setattr("pymemcg.oom._logs.KMSG", "/dev/there-is-no-kmsg")
        monkeypatch.setenv("PATH", str(tmp_path))

    return make


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_the_journal(journal, capsys, follow):
    journal(LOG.read_bytes())
    assert main(["oom", "--json", *follow]) == 0
    assert json.loads(capsys.readouterr().out)["pid"] == 216
    journal(b"")
    assert main(["oom", "--json", *follow]) == NotSupported.exit_code


class TestErrors:
    def test_no_file(self, tmp_path, capsys):
        assert main(["oom", str(tmp_path / "no")]) == SourceError.exit_code
        assert capsys.readouterr().err.count("No such file") == 1

    def test_a_folder(self, tmp_path, capsys):
        assert main(["oom", str(tmp_path)]) == SourceError.exit_code
        assert "cannot be read: Is a directory" in capsys.readouterr().err

    def test_a_compressed_one(self, tmp_path, capsys):
        path = tmp_path / "kern.log.2.gz"
        path.write_bytes(gzip.compress(LOG.read_bytes()))
        assert main(["oom", str(path)]) == MemcgError.exit_code
        assert f"is no text (zcat {path} | pymemcg oom -)" in capsys.readouterr().err

    def test_the_kernels_log_may_not_be_read(self, monkeypatch, capsys):
        monkeypatch.setattr("pymemcg.oom._logs.KMSG", "/dev/there-is-no-kmsg")
        monkeypatch.setenv("PATH", "")
        assert main(["oom"]) == NotSupported.exit_code
        said = capsys.readouterr().err
        assert "on the host: dmesg | pymemcg oom -" in said
        assert said.count("\n") == 1


def test_records_of_the_kernels_buffer():
    assert of_record(b"4,339,5140900,-;anon 1\\x0afile 2\n SUBSYSTEM=x\n") == ["4,339,5140900,-;anon 1", "file 2"]
    assert of_record(b"12,339,5140900,-;Out of memory: Killed process 1 (init)\n") == [], "a program wrote it, not the kernel"
    assert of_record(b"anything") == []
