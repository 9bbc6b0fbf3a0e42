# SPDX-License-Identifier: Apache-2.0
"""What tools show, by the formulas that their makers have published, written down once more on the files themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fakecgroup import DATA, KERNELS, machine_with_self

from pymemcg.explain import Snapshot, Tree, opened, take
from pymemcg.explain._tools import tools

MIB = 1 << 20


@dataclass
class Files:
    """The files of a group that tools read.

    Attributes:
        usage: memory.current, or memory.usage_in_bytes.
        stats: memory.stat as it is.
        unified: Whether they are v2's.
        use_hierarchy: memory.use_hierarchy, of v1.
    """

    usage: int
    stats: dict[str, int]
    unified: bool
    use_hierarchy: bool = True

    @staticmethod
    def of(directory: Path) -> Files:
        unified = (directory / "memory.current").exists()
        return Files(
            usage=int((directory / ("memory.current" if unified else "memory.usage_in_bytes")).read_text()),
            stats={
                key: int(value)
                for key, value in (line.split() for line in (directory / "memory.stat").read_text().splitlines())
            },
            unified=unified,
            use_hierarchy=not unified and (directory / "memory.use_hierarchy").read_text().strip() == "1",
        )


# ---- As published --------------------------------------------------------------------------------------------------


def cadvisor(files: Files) -> dict[str, int]:
    """By setMemoryStats of cAdvisor's container/libcontainer/handler.go, under the names of its metrics/prometheus.go."""
    told = {"container_memory_usage_bytes": files.usage}
    if files.unified:
        told["container_memory_cache"], told["container_memory_rss"] = files.stats["file"], files.stats["anon"]
    elif files.use_hierarchy:
        told["container_memory_cache"], told["container_memory_rss"] = files.stats["total_cache"], files.stats["total_rss"]
    else:
        told["container_memory_cache"], told["container_memory_rss"] = files.stats["cache"], files.stats["rss"]
    inactive = files.stats.get("inactive_file" if files.unified else "total_inactive_file")
    working_set = files.usage
    if inactive is not None:
        if working_set < inactive:
            working_set = 0
        else:
            working_set -= inactive
    told["container_memory_working_set_bytes"] = working_set
    return told


def containerd(files: Files) -> int:
    """By getWorkingSet and getWorkingSetV2 of containerd's CRI plugin, where the kubelet asks the runtime."""
    inactive = files.stats["inactive_file" if files.unified else "total_inactive_file"]
    return files.usage - inactive if inactive < files.usage else 0


def docker(files: Files) -> int:
    """By calculateMemUsageUnixNoCache of the Docker CLI, 20.10 and later."""
    if "total_inactive_file" in files.stats and files.stats["total_inactive_file"] < files.usage:
        return files.usage - files.stats["total_inactive_file"]
    if files.stats.get("inactive_file", 0) < files.usage:
        return files.usage - files.stats.get("inactive_file", 0)
    return files.usage


def docker_19_03(files: Files) -> int:
    """By the same up to 19.03: `mem.Usage - mem.Stats["cache"]`."""
    return files.usage - files.stats["cache"]


def expected(files: Files) -> dict[tuple[str, str], int]:
    told = {("cAdvisor, Prometheus", name): figure for name, figure in cadvisor(files).items()}
    told["kubelet, kubectl top", "memory"] = containerd(files)
    told["docker stats", "MEM USAGE, from 20.10"] = docker(files)
    if not files.unified:
        told["docker stats", "MEM USAGE, to 19.03"] = docker_19_03(files)
    return told


def of_the_group(snapshot: Snapshot) -> dict[tuple[str, str], int | None]:
    rows = tools(replace(snapshot, processes=())).shown
    assert len({(one.tool, one.figure) for one in rows}) == len(rows)
    return {(one.tool, one.figure): one.shown_bytes for one in rows}


# ---- Of groups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, "cgroup:/pmc-parent"], ids=["leaf", "parent"])  # of whose memory all is below it
@pytest.mark.parametrize("kernel", KERNELS)
def test_captured_groups(kernel, spec):
    with opened(str(DATA / kernel)) as tree:
        taken = take(tree, spec)
    assert of_the_group(taken) == expected(Files.of(DATA / kernel / taken.group.directory.strip("/")))


@pytest.mark.parametrize("below", [0, 10, 25, 39, 40, 50], ids="{} MiB of files below".format)
@pytest.mark.parametrize("own", [0, 1, 39, 40, 41], ids="{} MiB of its own".format)
@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_files_that_were_not_used_again_lately(layout, own, below, tmp_path):
    """Usage is 40 MiB; memory.stat is up to 2 s older, and may have more of them."""
    machine = machine_with_self(tmp_path, layout)
    inactive = (own + below) * MIB
    if layout == "v2":
        stat = f"anon {3 * MIB}\nfile {inactive + MIB}\ninactive_file {inactive}"
    else:
        stat = f"cache {own * MIB}\nrss {MIB}\ninactive_file {own * MIB}\n"
        stat += f"total_cache {inactive + MIB}\ntotal_rss {3 * MIB}\ntotal_inactive_file {inactive}"
    directory = machine.group("/web", usage=40 * MIB, memory__stat=stat)
    told = of_the_group(take(Tree(machine.root, {"page_bytes": 4096}), "cgroup:/web"))
    assert told == expected(Files.of(directory))


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_what_cannot_be_read_is_shown_by_nobody(layout, tmp_path):
    machine = machine_with_self(tmp_path, layout)
    directory = machine.group("/web", usage=40 * MIB)
    (directory / "memory.stat").unlink()
    told = of_the_group(take(Tree(machine.root, {"page_bytes": 4096}), "cgroup:/web"))
    assert told.pop(("cAdvisor, Prometheus", "container_memory_usage_bytes")) == 40 * MIB
    assert set(told.values()) == {None}


# ---- Of processes --------------------------------------------------------------------------------------------------


@pytest.fixture(params=KERNELS)
def captured(request) -> Snapshot:
    with opened(str(DATA / request.param)) as tree:
        return take(tree, pss=True)


def of_processes(snapshot: Snapshot) -> dict[str, int | None]:
    group = len(of_the_group(snapshot))
    return {one.figure: one.shown_bytes for one in tools(snapshot).shown[group:]}


def test_resident_is_anonymous_files_and_shared(captured):
    [process] = captured.processes
    status = process.status
    assert status["VmRSS"] == status["RssAnon"] + status["RssFile"] + status["RssShmem"] == process.rss_bytes
    assert status["RssFile"] + status["RssShmem"] == process.shared_bytes
    assert status["VmSize"] == process.virtual_bytes
    assert 0 < process.pss_bytes < process.rss_bytes


def test_sums_are_over_all_processes(captured):
    [process] = captured.processes
    once, thrice = (of_processes(replace(captured, processes=(process,) * count)) for count in (1, 3))
    assert once["RES, RSS"] == process.rss_bytes
    assert once["VIRT, VSZ"] == process.virtual_bytes
    assert once["SHR"] == process.shared_bytes
    assert once["PSS"] == process.pss_bytes
    assert thrice == {figure: 3 * shown for figure, shown in once.items()}


def test_a_sum_that_lacks_a_process_is_none(captured):
    [process] = captured.processes
    status = {name: value for name, value in process.status.items() if name != "VmSwap"}
    unknown = replace(process, pss_bytes=None, status=status)
    told = of_processes(replace(captured, processes=(process, unknown)))
    assert told["PSS"] is None
    assert told["VmSwap"] is None
    assert told["RES, RSS"] == 2 * process.rss_bytes


def test_without_processes_nothing_is_shown_of_them(captured):
    none = replace(captured, processes=())
    assert of_processes(none) == {}
    assert "nothing for top and ps to show" in tools(none).says[-1]


def test_what_is_counted_again_is_said_where_it_is_known(captured):
    [process] = captured.processes
    half = replace(process, rss_bytes=48 * MIB, pss_bytes=20 * MIB)
    [text] = [text for text in tools(replace(captured, processes=(half, half))).says if "PSS" in text]
    assert "96.0 MiB" in text
    assert "40.0 MiB" in text
    assert "56.0 MiB were counted again" in text
    unknown = replace(half, pss_bytes=None)
    [text] = [text for text in tools(replace(captured, processes=(half, unknown))).says if "RES summed" in text]
    assert "--pss" in text
