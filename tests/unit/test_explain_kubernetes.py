# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes makes of a group: on nodes built of captured kernels, by both cgroup drivers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from nodetree import BEST_EFFORT_UID, BURSTABLE_UID, DATA, GUARANTEED_UID, NodeTree, identifier

from pymemcg.explain import opened, take
from pymemcg.explain._kubernetes import KubernetesSection, available_bytes, kubernetes
from pymemcg.explain._pods import Place, implied_request, place
from pymemcg.explain._snapshot import Group, Process, Snapshot

MIB = 1 << 20
KERNELS = sorted(path.name for path in DATA.iterdir() if (path / "proc").is_dir())


def uid(name: str) -> str:
    return name.replace("-", "_")


DRIVERS = {
    "cgroupfs": (
        "/kubepods",
        f"/kubepods/pod{GUARANTEED_UID}",
        f"/kubepods/burstable/pod{BURSTABLE_UID}",
        f"/kubepods/besteffort/pod{BEST_EFFORT_UID}",
        "{}",
    ),
    "systemd": (
        "/kubepods.slice",
        f"/kubepods.slice/kubepods-pod{uid(GUARANTEED_UID)}.slice",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid(BURSTABLE_UID)}.slice",
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid(BEST_EFFORT_UID)}.slice",
        "cri-containerd-{}.scope",
    ),
}


class Node:
    """Three pods, each of a class: `big` with a sandbox and `small` beside it, `calm` and `poor`."""

    def __init__(self, tree: NodeTree, driver: str):
        self.tree = tree
        self.top, self.guaranteed, self.burstable, self.best_effort, scope = DRIVERS[driver]
        names = {
            "pause": (self.burstable, "0"),
            "big": (self.burstable, "1"),
            "small": (self.burstable, "2"),
            "calm": (self.guaranteed, "3"),
            "poor": (self.best_effort, "4"),
        }
        self.path = {name: f"{pod}/{scope.format(identifier(digit))}" for name, (pod, digit) in names.items()}
        for path in self.path.values():
            tree.group(path)
        limits = {self.top: 1500, self.guaranteed: 300, self.burstable: 600}
        limits |= {self.path["big"]: 400, self.path["small"]: 200, self.path["calm"]: 300}
        for path, limit in limits.items():
            tree.limit(path, limit * MIB)
        usage = {self.top: (700, 0), self.guaranteed: (200, 0), self.burstable: (450, 20), self.best_effort: (80, 0)}
        usage |= {self.path["pause"]: (1, 0), self.path["big"]: (350, 20), self.path["small"]: (69, 0)}
        usage |= {self.path["calm"]: (200, 0), self.path["poor"]: (80, 0)}
        for path, (count, cache) in usage.items():
            tree.usage(path, count * MIB, cache * MIB)
        self.pids = dict(zip(self.path, range(2000, 2005), strict=True))
        for name, adj in zip(self.path, (-998, 870, 950, -997, 1000), strict=True):
            tree.process(self.pids[name], self.path[name], adj, name="pause" if name == "pause" else "python3")

    def seen_by(self, name: str) -> tuple[Snapshot, KubernetesSection]:
        """Explained from a container's process."""
        return self.told(self.tree.become(self.pids[name]))

    def of(self, path: str) -> tuple[Snapshot, KubernetesSection]:
        """A group explained from the node."""
        return self.told(self.tree.become(self.pids["calm"]), f"cgroup:{path}")

    @staticmethod
    def told(root: str, spec: str | None = None) -> tuple[Snapshot, KubernetesSection]:
        with opened(root) as tree:
            snapshot = take(tree, spec)
        told = kubernetes(snapshot)
        assert told is not None
        json.dumps(asdict(told))
        return snapshot, told


@pytest.fixture(params=[("6.1-v1", "cgroupfs"), ("6.1-v1", "systemd"), ("6.12-v2", "cgroupfs"), ("6.12-v2", "systemd")])
def node(request, tmp_path) -> Node:
    kernel, driver = request.param
    return Node(NodeTree(tmp_path, kernel), driver)


@pytest.fixture
def v2(tmp_path) -> Node:
    return Node(NodeTree(tmp_path, "6.12-v2"), "systemd")


def said(told: KubernetesSection) -> str:
    return "\n".join(told.says)


# ---- Paths and numbers ---------------------------------------------------------------------------------------------

ONE = identifier("1")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/kubepods/burstable/pod{BURSTABLE_UID}/{ONE}", Place("Burstable", BURSTABLE_UID, ONE, True)),
        (f"/kubepods/pod{BURSTABLE_UID}/{ONE}", Place("Guaranteed", BURSTABLE_UID, ONE, True)),
        (f"/kubepods/besteffort/pod{BURSTABLE_UID}", Place("BestEffort", BURSTABLE_UID, None, False)),
        (
            "/system.slice/docker-abc.scope/kubelet/kubepods/burstable/pod"
            + BURSTABLE_UID
            + "/crio-"
            + ONE
            + ".scope/container",
            Place("Burstable", BURSTABLE_UID, ONE, True),
        ),
        (
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort-pod{uid(BURSTABLE_UID)}.slice/{ONE}.scope",
            Place("BestEffort", BURSTABLE_UID, ONE, True),
        ),
        (
            f"/system.slice/containerd.service/kubepods-burstable-pod{uid(BURSTABLE_UID)}.slice:cri-containerd:{ONE}",
            Place("Burstable", BURSTABLE_UID, ONE, True),
        ),
        # A static pod's UID is a hash.
        (f"/kubepods/burstable/pod{'0a' * 16}/{ONE}", Place("Burstable", "0a" * 16, ONE, True)),
        ("/kubepods.slice/kubepods-burstable.slice", Place("Burstable", None, None, False)),
        ("/kubepods", Place(None, None, None, False)),
        (f"/docker/{ONE}", None),
        ("/system.slice/kubelet.service", None),
        ("/user.slice/burstable/podcast", None),
        ("/", None),
    ],
)
def test_paths(path, expected):
    assert place(path) == expected


def oom_score_adj(request: int, capacity: int, guaranteed: int) -> int:
    """The kubelet's formula for a Burstable container."""
    adj = 1000 - 1000 * request // capacity
    if adj < 1000 + guaranteed:
        return 1000 + guaranteed
    return 999 if adj == 1000 else adj


@pytest.mark.parametrize("capacity", [2026256 << 10, 1000, 256 << 30])
@pytest.mark.parametrize("guaranteed", [-997, -998])
def test_a_request_is_within_what_its_number_implies(capacity, guaranteed):
    # Of each number at both of its ends, where the next request gets another.
    for adj in range(1000 + guaranteed, 1000):
        least, most = implied_request(adj, capacity)
        assert least <= most
        for request in (least, most):
            if guaranteed == -997 or adj > 3:
                assert oom_score_adj(request, capacity, guaranteed) == adj
    for thousandth in range(1001):
        request = capacity * thousandth // 1000
        least, most = implied_request(oom_score_adj(request, capacity, guaranteed), capacity)
        assert least <= request <= most


@pytest.mark.parametrize("adj", [-1000, -998, 0, 1, 1000])
def test_numbers_that_no_burstable_container_has(adj):
    assert implied_request(adj, 1 << 30) is None


# ---- Containers ----------------------------------------------------------------------------------------------------


def test_a_burstable_container(node):
    snapshot, told = node.seen_by("big")
    assert (told.by, told.kind, told.qos, told.pod) == ("path", "container", "Burstable", BURSTABLE_UID)
    assert told.container == identifier("1")
    total = snapshot.node.meminfo["MemTotal"]
    assert (told.request_bytes, told.request_most_bytes) == implied_request(870, total)
    assert told.request_from == "oom_score_adj"
    assert told.over_request_bytes == 330 * MIB - told.request_bytes > 0
    assert (told.limit_bytes, told.pod_limit_bytes, told.pod_usage_bytes) == (400 * MIB, 600 * MIB, 450 * MIB)
    assert (told.pods_limit_bytes, told.pods_usage_bytes) == (1500 * MIB, 700 * MIB)
    assert told.outside_bytes == (450 - 350 - 69 - 1) * MIB
    assert told.throttling is None
    assert "oom_score_adj 870 implies" in said(told)
    assert "30.0 MiB of the pod's memory is in none of its containers" in said(told)
    assert "At its limit of 400.0 MiB the kernel kills: reason OOMKilled" in said(told)


def test_a_guaranteed_container_asked_for_its_limit(node):
    _, told = node.seen_by("calm")
    assert (told.qos, told.request_bytes, told.request_from) == ("Guaranteed", 300 * MIB, "limit")
    assert told.over_request_bytes == -100 * MIB
    assert "100.0 MiB below that" in said(told)
    assert "This pod is within its request" in said(told)


def test_a_best_effort_container_asked_for_nothing(node):
    _, told = node.seen_by("poor")
    assert (told.qos, told.request_bytes, told.request_most_bytes, told.request_from) == ("BestEffort", 0, 0, "path")
    assert told.limit_bytes is None
    assert "It has no limit, so its end is eviction" in said(told)


def test_a_sandbox(node):
    _, told = node.seen_by("pause")
    assert (told.kind, told.request_bytes) == ("sandbox", 0)
    assert [one for one in told.pods if one.request_bytes is None] == []


def test_a_group_within_a_container_is_that_container(v2):
    inner = f"{v2.path['big']}/init"
    v2.tree.group(inner)
    v2.tree.usage(inner, 5 * MIB)
    v2.tree.process(2050, inner, 870)
    _, told = v2.told(v2.tree.become(2050))
    assert (told.kind, told.container, told.limit_bytes) == ("container", identifier("1"), 400 * MIB)
    [target] = [one for one in told.containers if one.target]
    assert target.name == v2.path["big"]


@pytest.mark.parametrize(
    ("name", "adj", "words"),
    [
        ("big", -997, "critical for the node"),
        ("big", 0, "somebody changed it"),
        ("poor", 500, "somebody changed it"),
        ("calm", -998, "before Kubernetes 1.22"),
    ],
)
def test_numbers_that_do_not_fit_the_class(v2, name, adj, words):
    v2.tree.write(f"proc/{v2.pids[name]}/oom_score_adj", adj)
    _, told = v2.seen_by(name)
    assert words in said(told)
    assert told.kind == "container"
    if name == "big":
        assert told.request_bytes is None
        assert f"neither oom_score_adj {adj}" in said(told)


# ---- Pods and the ranking ------------------------------------------------------------------------------------------


def test_pods_and_containers_are_ranked_by_working_set_beyond_the_request(node):
    snapshot, told = node.seen_by("big")
    total = snapshot.node.meminfo["MemTotal"]
    asked = [implied_request(adj, total)[0] for adj in (870, 950)]
    assert [(one.name, one.over_request_bytes, one.request_from, one.target) for one in told.pods] == [
        (node.best_effort, 80 * MIB, "path", False),
        (node.burstable, 430 * MIB - sum(asked), "oom_score_adj", True),
        (node.guaranteed, -100 * MIB, "limit", False),
    ]
    assert [(one.name, one.over_request_bytes, one.target) for one in told.containers] == [
        (node.path["big"], 330 * MIB - asked[0], True),
        (node.path["pause"], 1 * MIB, False),
        (node.path["small"], 69 * MIB - asked[1], False),
    ]
    assert "Of 3 pods, pod cccccccc is furthest beyond its request" in said(told)
    assert "Of 3 containers of this pod, 111111111111 (the one explained here)" in said(told)


def test_a_pod_asked_for_what_its_containers_did(node):
    snapshot, told = node.of(node.burstable)
    ranges = [implied_request(adj, snapshot.node.meminfo["MemTotal"]) for adj in (870, 950)]
    assert (told.kind, told.oom_score_adj, told.limit_bytes) == ("pod", None, 600 * MIB)
    assert told.request_bytes == sum(least for least, _ in ranges)
    assert told.request_most_bytes == sum(most for _, most in ranges)
    assert "Its containers' oom_score_adj imply" in said(told)


def test_a_pod_with_a_container_that_cannot_be_seen_into_tells_no_request(node):
    node.tree.group(node.path["small"], cgroup__procs="")
    _, told = node.of(node.burstable)
    assert told.request_bytes is None
    assert told.pods[-1].target
    assert told.pods[-1].over_request_bytes is None
    assert "1 of them do not tell their request; the largest is pod bbbbbbbb" in said(told)


def test_the_groups_above_the_pods(node):
    _, told = node.of(node.burstable.rpartition("/")[0])
    assert (told.kind, told.qos, told.pod, told.request_bytes) == ("pods", "Burstable", None, None)


def test_all_pods_are_seen_from_above_them_and_from_beside_them(node):
    for path in (node.top, node.burstable.rpartition("/")[0]):
        assert {one.pod for one in node.of(path)[1].pods} == {BURSTABLE_UID, GUARANTEED_UID, BEST_EFFORT_UID}
    node.tree.group("/system.slice/sshd.service")
    with opened(node.tree.become(node.pids["calm"])) as tree:
        snapshot = take(tree, "cgroup:/system.slice/sshd.service")
    pods = {one.group.name for one in snapshot.neighbours if one.pod is not None}
    assert {node.guaranteed, node.burstable, node.best_effort, node.path["poor"]} <= pods


# ---- Memory QoS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["min", "low"])
def test_memory_qos_tells_the_request_and_its_factor(v2, policy):
    v2.tree.limit(v2.path["big"], 400 * MIB, **{policy: 256 * MIB, "high": int(256 * MIB + 0.7 * 144 * MIB) // 4096 * 4096})
    _, told = v2.seen_by("big")
    assert (told.request_bytes, told.request_most_bytes, told.request_from) == (256 * MIB, 256 * MIB, f"memory.{policy}")
    assert (told.throttling.factor, told.throttling.rule) == (0.7, "1.27")
    assert "74.0 MiB more than that" in said(told)
    assert "request + 0.7 × (the limit - request)" in said(told)


def test_the_default_factor_is_found_within_what_oom_score_adj_implies(v2):
    v2.tree.limit(v2.path["big"], 400 * MIB, high=int(257 * MIB + 0.9 * 143 * MIB) // 4096 * 4096)
    _, told = v2.seen_by("big")
    assert (told.throttling.factor, told.throttling.rule, told.throttling.of_allocatable) == (0.9, "1.27", False)


def test_before_1_27_it_was_a_share_of_the_limit(v2):
    v2.tree.limit(v2.path["big"], 400 * MIB, min=256 * MIB, high=320 * MIB)
    _, told = v2.seen_by("big")
    assert (told.throttling.factor, told.throttling.rule) == (0.8, "1.22")


def test_without_a_limit_it_is_a_share_of_the_nodes(v2):
    v2.tree.limit(v2.path["poor"], None, high=1350 * MIB)
    _, told = v2.seen_by("poor")
    assert (told.throttling.factor, told.throttling.rule, told.throttling.of_allocatable) == (0.9, "1.27", True)
    assert "the node's memory for pods" in said(told)


def test_what_no_rule_makes_is_said_so(v2):
    v2.tree.limit(v2.path["big"], 400 * MIB, min=256 * MIB, high=100 * MIB)
    _, told = v2.seen_by("big")
    assert (told.throttling.high_bytes, told.throttling.factor, told.throttling.rule) == (100 * MIB, None, None)
    assert "by no rule of Kubernetes" in said(told)


# ---- By oom_score_adj alone ----------------------------------------------------------------------------------------


def hidden(adj: int, **changes: object) -> Snapshot:
    """A captured process in a container that hides the hierarchy above it."""
    with opened(str(DATA / "6.12-v2")) as tree:
        taken = take(tree)
    group = replace(taken.group, name="/", limits=dict(taken.group.limits) | {"max": 64 * MIB})
    process = replace(taken.processes[0], oom_score_adj=adj)
    return replace(taken, levels=(group,), cgroup_path="/", processes=(process,), neighbours=(), **changes)


@pytest.mark.parametrize(
    ("adj", "qos", "source"),
    [
        (-997, "Guaranteed", "limit"),
        (-998, "Guaranteed", "limit"),
        (1000, "BestEffort", "path"),
        (985, "Burstable", "oom_score_adj"),
    ],
)
def test_the_class_by_the_number_alone_is_a_guess(adj, qos, source):
    told = kubernetes(hidden(adj))
    assert (told.by, told.kind, told.qos, told.request_from, told.pod) == ("oom_score_adj", "container", qos, source, None)
    assert f"Only oom_score_adj {adj} says that" in said(told)
    assert (told.pods, told.containers) == ((), ())


@pytest.mark.parametrize("adj", [0, -1000, -999, 1, -500])
def test_other_numbers_point_to_nothing(adj):
    assert kubernetes(hidden(adj)) is None


def test_neither_does_a_number_where_the_path_is_anothers():
    assert kubernetes(replace(hidden(1000), cgroup_path="/system.slice/web.service")) is None


def test_where_nothing_can_be_seen():
    assert kubernetes(replace(hidden(1000), processes=())) is None


def test_the_first_process_counts_and_the_sandbox_only_alone():
    taken = hidden(985)
    [one] = taken.processes
    # Children may have raised theirs; the container's own is the first, which need not be the lowest of these pids.
    children = [replace(one, pid=one.pid - i, oom_score_adj=1000, first=False) for i in (1, 2)]
    assert kubernetes(replace(taken, processes=(*children, replace(one, first=True)))).oom_score_adj == 985
    pause = replace(one, pid=1, oom_score_adj=-998, name="pause", first=None)
    assert kubernetes(replace(taken, processes=(replace(one, first=None), pause))).oom_score_adj == 985
    alone = kubernetes(replace(taken, processes=(pause,)))
    assert (alone.kind, alone.qos) == ("sandbox", None)


def test_memory_as_lxcfs_shows_it_implies_no_request():
    taken = hidden(985)
    node = replace(taken.node, meminfo=dict(taken.node.meminfo) | {"MemTotal": 64 * MIB})
    told = kubernetes(replace(taken, node=node))
    assert (told.request_bytes, told.available_least_bytes) == (None, None)


# ---- Eviction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_available_is_near_the_kernels_own_estimate(kernel):
    with opened(str(DATA / kernel)) as tree:
        info = take(tree).node.meminfo
    least, most = sorted(available_bytes(info))
    # Which subtracts the watermarks, and has active file cache and slab as well.
    assert info["MemFree"] <= least <= most <= info["MemTotal"]
    assert least == pytest.approx(info["MemAvailable"], rel=0.1)


def test_available_needs_its_figures():
    assert available_bytes({"MemTotal": 1 << 30}) == ()


@pytest.mark.parametrize(("free", "words"), [(50, "it evicts now"), (150, "it is about to evict"), (800, None)])
def test_how_near_eviction_is(v2, free, words):
    taken, _ = v2.seen_by("big")
    info = {"MemTotal": 2000, "MemFree": free, "AnonPages": 1900 - free, "Cached": 90, "Buffers": 10, "SwapCached": 0}
    info = {name: count * MIB for name, count in info.items()} | {"Inactive(file)": 0}
    told = kubernetes(replace(taken, node=replace(taken.node, meminfo=info)))
    assert told.available_least_bytes == told.available_most_bytes == free * MIB
    assert ("evicts now" in said(told), "about to evict" in said(told)) == (
        words == "it evicts now",
        words == "it is about to evict",
    )
    assert "less than 100.0 MiB" in said(told)


# ---- Alibaba's kernel ----------------------------------------------------------------------------------------------


def test_background_reclaim(node):
    _, told = node.seen_by("big")
    assert told.background is None
    marks = {"ratio": 80, "high": 320 * MIB, "low": 319 * MIB, "scale_factor": 50, "min_adj": 0}
    node.tree.group(node.path["big"], **{f"memory__wmark_{name}": value for name, value in marks.items()})
    _, told = node.seen_by("big")
    assert (told.background.ratio_percent, told.background.high_bytes, told.background.reclaiming) == (80, 320 * MIB, True)
    assert "memory.wmark_ratio 80 %, from 320.0 MiB down to 319.0 MiB): usage is above" in said(told)
    node.tree.group(node.path["big"], memory__wmark_ratio=0)
    _, told = node.seen_by("big")
    assert (told.background.ratio_percent, told.background.high_bytes) == (0, None)
    assert "memory.wmark_ratio is 0, so it does not: 95 would begin at 380.0 MiB" in said(told)


# ---- Elsewhere -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_captured_kernels_are_no_nodes(kernel):
    with opened(str(DATA / kernel)) as tree:
        assert kubernetes(take(tree)) is None


def test_little_that_can_be_read_is_no_crash(v2):
    taken, _ = v2.seen_by("big")
    bare = [Group(one.name, one.directory, None, None, {}, {}, {}, {}, {}, False, None) for one in taken.levels]
    process: tuple[Process, ...] = ()
    node = replace(taken.node, meminfo={}, zones=(), settings={})
    told = kubernetes(replace(taken, levels=tuple(bare), processes=process, node=node, neighbours=()))
    assert (told.kind, told.qos, told.request_bytes, told.available_least_bytes) == ("container", "Burstable", None, None)
    assert told.over_request_bytes is None
    assert "cannot be told" in said(told)
