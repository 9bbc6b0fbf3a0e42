# SPDX-License-Identifier: Apache-2.0
"""Collections: what is in them, that they explain what was collected, and archives that are none."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pymemcg.errors import MemcgError, RecordingError
from pymemcg.explain import Tree, notes, opened, take
from pymemcg.explain._tree import NOTES

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def collection(tmp_path):
    """This process's own group, collected."""
    tree, path = Tree(), str(tmp_path / "it.tar.gz")
    taken = take(tree)
    tree.save(path, notes(taken))
    return taken, path


def test_a_collection_explains_what_was_collected(collection):
    taken, path = collection
    with opened(path) as tree:
        again = take(tree)
    assert again == replace(taken, absent=again.absent)


def test_a_collection_has_no_command_line_and_no_environment(collection):
    with tarfile.open(collection[1]) as archive:
        names = archive.getnames()
        held = b"".join(archive.extractfile(entry).read() for entry in archive if entry.isreg())
    assert not [name for name in names if name.endswith(("cmdline", "environ", "maps", "smaps"))]
    assert os.environ["PATH"].encode() not in held
    mounts = [line for name in names if name.endswith("mountinfo") for line in _text(collection[1], name).splitlines()]
    assert mounts
    assert all(" - cgroup" in line or " - tmpfs" in line for line in mounts)


def _text(path, name):
    with tarfile.open(path) as archive:
        return archive.extractfile(name).read().decode()


def test_a_collection_is_whole_or_not_there(tmp_path):
    tree = Tree()
    path = tmp_path / "no-such-folder" / "it.tar.gz"
    with pytest.raises(Exception, match="cannot be written: No such file or directory"):
        tree.save(str(path), notes(take(tree)))
    assert os.listdir(tmp_path) == []


def test_a_collection_is_its_owners_alone(collection):
    assert os.lstat(collection[1]).st_mode & 0o7777 == 0o600
    assert os.listdir(os.path.dirname(collection[1])) == ["it.tar.gz"]


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "it.tar.gz"
    path.write_text("before")
    Tree().save(str(path), {})
    assert tarfile.is_tarfile(path)
    assert os.listdir(tmp_path) == ["it.tar.gz"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("elsewhere", path)])
def test_what_is_no_file_is_not_replaced(make, tmp_path):
    path = str(tmp_path / "it.tar.gz")
    make(path)
    before = os.lstat(path)
    with pytest.raises(MemcgError, match="is no regular file"):
        Tree().save(path, {})
    assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(tmp_path) == ["it.tar.gz"]


def made(path, *entries: tarfile.TarInfo) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    return str(path)


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "proc/../../outside"])
def test_nothing_is_unpacked_elsewhere(name, tmp_path):
    with pytest.raises(RecordingError, match="is no path of a collection"), opened(made(tmp_path / "a.tar.gz", entry(name))):
        pass
    assert os.listdir(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_not_unpacked(kind, tmp_path):
    path = made(tmp_path / "a.tar.gz", entry("proc/meminfo", kind=kind, link="/etc/passwd"), entry("proc/version", 1))
    with opened(path) as tree:
        assert os.listdir(f"{tree.root}/proc") == ["version"]


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path):
    path = made(tmp_path / "a.tar.gz", entry("proc/meminfo", 257 << 20))
    with pytest.raises(RecordingError, match="is larger than 256 MiB"), opened(path):
        pass


def test_a_file_that_no_kernel_has_is_refused(tmp_path):
    path = made(tmp_path / "a.tar.gz", entry("proc/meminfo", (16 << 20) + 1))
    with pytest.raises(RecordingError, match="has a proc/meminfo of more than 16 MiB"), opened(path):
        pass


@pytest.fixture
def folder(tmp_path):
    """A captured tree, in a copy."""
    return shutil.copytree(DATA / "6.12-v2", tmp_path / "it")


def test_of_a_folder_only_what_an_explanation_reads_is_copied(folder):
    for name in ("proc/kcore", "proc/PID/cmdline", "proc/PID/environ", "sys/fs/cgroup/secret"):
        (folder / name).write_text("nobody's business")
    with opened(str(folder)) as tree:
        kept = {file.name for file in Path(tree.root).rglob("*") if file.is_file()}
    assert kept.isdisjoint({"kcore", "cmdline", "environ", "secret", "cgroups", "cpu.stat"})
    assert {"meminfo", "swappiness", "memory", "smaps_rollup", "memory.stat", "cgroup.procs"} <= kept


def test_a_folders_links_and_pipes_are_not_read(folder):
    (folder / "outside").write_text("MemTotal: 1 kB\n")
    for name in ("proc/meminfo", "proc/vmstat", "sys/fs/cgroup/pmc-parent/memory.peak"):
        (folder / name).unlink()
    (folder / "proc/meminfo").symlink_to(folder / "outside")
    os.mkfifo(folder / "proc/vmstat")
    (folder / "sys/fs/cgroup/linked").symlink_to(folder / "sys/fs/cgroup/pmc-parent")
    with opened(str(folder)) as tree:
        assert tree.text("/proc/meminfo") is tree.text("/proc/vmstat") is None
        assert tree.folders("/sys/fs/cgroup") == ["pmc-parent"]


def test_a_folder_with_a_file_that_no_kernel_has_is_refused(folder):
    os.truncate(folder / "proc/meminfo", (16 << 20) + 1)
    with pytest.raises(RecordingError, match="has a proc/meminfo of more than 16 MiB"), opened(str(folder)):
        pass


def test_a_running_machine_is_no_collection():
    with pytest.raises(RecordingError, match="is a running machine and no collection"), opened("/"):
        pass


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "it.tar.gz")
    with pytest.raises(RecordingError, match="is neither a folder nor an archive"), opened(str(tmp_path / "it.tar.gz")):
        pass


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_what_is_no_archive_is_said(content, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(RecordingError, match=r"is no archive|cannot be read"), opened(str(tmp_path / "a.tar.gz")):
        pass


@pytest.mark.parametrize("cut", [100, 1000, 2000])
def test_a_cut_archive_is_said(collection, cut, tmp_path):
    whole = Path(collection[1]).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:cut])
    with pytest.raises(RecordingError), opened(str(tmp_path / "cut.tar.gz")) as tree:
        take(tree)


@pytest.mark.parametrize("text", ["[]", "{", '{"format": 99}'])
def test_notes_of_another_form_are_said(text, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / NOTES).write_text(text)
    with pytest.raises(RecordingError, match=NOTES), opened(str(tmp_path)):
        pass


def test_a_folder_that_is_no_collection_is_said(tmp_path):
    with pytest.raises(RecordingError, match="is no collection"), opened(str(tmp_path)):
        pass
