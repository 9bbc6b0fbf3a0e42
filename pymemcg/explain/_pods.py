# SPDX-License-Identifier: Apache-2.0
"""Pods and containers by what their groups show: whose a group is, what it asked for, and how far it is beyond that."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pymemcg.explain._neighbours import POD
from pymemcg.explain._tools import working_set

if TYPE_CHECKING:
    from pymemcg.explain._snapshot import Group, Neighbour, Snapshot

GUARANTEED, BURSTABLE, BEST_EFFORT = "Guaranteed", "Burstable", "BestEffort"

SANDBOX_ADJ: Final = -998
GUARANTEED_ADJ: Final = -997
BEST_EFFORT_ADJ: Final = 1000
"""pkg/kubelet/qos/policy.go: a Guaranteed container had -998 before Kubernetes 1.22, as the pod's sandbox (`pause`) has."""

_BURSTABLE_ADJ: Final = range(2, 1000)  # 3 to 999; 2 to 999 before 1.22
_TIER: Final = re.compile(r"(?:kubelet-)?kubepods(?:-(burstable|besteffort)(?:-pod.*)?|-pod.*)?(?:\.slice)?")
_TIERS: Final = {"burstable": BURSTABLE, "besteffort": BEST_EFFORT}
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group is below `kubepods`.

    Attributes:
        qos: "Guaranteed", "Burstable" or "BestEffort"; None where the path ends above the pods.
        pod: The pod's UID.
        container: The container's id; None where the group is no container's, or has no such name.
        below_pod: Whether the group is below the pod's.
    """

    qos: str | None
    pod: str | None
    container: str | None
    below_pod: bool


def place(path: str) -> Place | None:
    """What a path says; None where it is not below `kubepods`.

    The cgroupfs driver makes `/kubepods/burstable/pod<UID>/<ID>`, the systemd driver
    `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<UID>.slice/cri-containerd-<ID>.scope`; a Guaranteed pod is
    right below `kubepods` (pkg/kubelet/cm/pod_container_manager_linux.go). kind has `kubelet-kubepods`, and where kubelet and
    runtime disagree about the driver, the three last parts are one, joined by colons.
    """
    parts = re.split("[/:]", path.strip("/"))
    tops = [i for i, part in enumerate(parts) if _TIER.fullmatch(part)]
    if not tops:
        return None
    tiers = [found[1] for part in parts if (found := _TIER.fullmatch(part)) and found[1]]
    tiers += [part for part in parts[tops[0] :] if part in _TIERS]
    pods = [(i, found[1]) for i, part in enumerate(parts) if (found := POD.fullmatch(part))]
    tier = _TIERS[tiers[-1]] if tiers else None
    if not pods:
        return Place(tier, None, None, below_pod=False)
    at, uid = pods[-1]
    inner = [found[0] for part in parts[at + 1 :] if (found := _ID.search(part))]
    return Place(tier or GUARANTEED, uid.replace("_", "-"), inner[0] if inner else None, below_pod=at + 1 < len(parts))


def implied_request(adj: int, total_bytes: int) -> tuple[int, int] | None:
    """The least and the most that a Burstable container with that oom_score_adj may have requested.

    The kubelet sets ``1000 - 1000 × request / capacity`` in whole numbers, at least 3 (2 before 1.22) and at most 999
    (`GetContainerOOMScoreAdjust`, pkg/kubelet/qos/policy.go), so the request is known to a thousandth of the node's memory,
    and at the ends only to be small, or nearly all. A sidecar may have the number of the pod's other containers, and a
    request of the whole pod is shared out among its containers.

    Args:
        adj: The container's.
        total_bytes: The node's memory, MemTotal.

    Returns:
        Bytes; None where a Burstable container has no such number.
    """
    if adj not in _BURSTABLE_ADJ:
        return None
    thousandths = 1000 - adj
    least = 0 if adj == _BURSTABLE_ADJ[-1] else -(-thousandths * total_bytes // 1000)
    most = total_bytes if adj <= 1000 + GUARANTEED_ADJ else -(-(thousandths + 1) * total_bytes // 1000) - 1
    return least, most


def capacity(snapshot: Snapshot) -> int | None:
    """The node's memory; None where MemTotal is not that, but a limit, as lxcfs shows it in containers."""
    total = snapshot.node.meminfo.get("MemTotal")
    return None if any(total == group.limit_bytes for group in snapshot.levels) else total


@dataclass(frozen=True, slots=True)
class Request:
    """What a container or a pod asked for.

    Attributes:
        least_bytes: At least that.
        most_bytes: At most that; the same where it is known.
        source: "memory.min" or "memory.low" (Memory QoS), "oom_score_adj", "limit" (Guaranteed: both are equal) or "path"
            (BestEffort: none).
    """

    least_bytes: int
    most_bytes: int
    source: str


def request_of(group: Group, qos: str | None, adj: int | None, total_bytes: int | None) -> Request | None:
    """What a group's container asked for, by the best that tells; None where nothing does."""
    for name in ("min", "low"):
        protected = group.limits.get(name)
        if protected:
            return Request(protected, protected, f"memory.{name}")
    if qos == BEST_EFFORT:
        return Request(0, 0, "path")
    if qos == GUARANTEED:
        return None if group.limit_bytes is None else Request(group.limit_bytes, group.limit_bytes, "limit")
    implied = None if adj is None or total_bytes is None else implied_request(adj, total_bytes)
    return None if implied is None else Request(*implied, "oom_score_adj")


@dataclass(frozen=True, slots=True)
class Rank:
    """A pod or a container, by how far it is beyond what it asked for.

    Attributes:
        name: Its group's.
        kind: "pod" or "container".
        pod: The pod's UID.
        qos: Its class.
        target: Whether it is the one that is explained, or the pod that it is in.
        usage_bytes: Its usage.
        working_set_bytes: Usage less inactive file cache, as the kubelet counts.
        request_bytes: The least that it asked for; None = not known.
        request_most_bytes: The most that it may have asked for; the same where it is known.
        request_from: As `Request.source`; of a pod that of its containers.
        over_request_bytes: Working set less request, by which the kubelet chooses whom to evict; negative below it.
        limit_bytes: Its hard limit; None = none.
    """

    name: str
    kind: str
    pod: str | None
    qos: str | None
    target: bool
    usage_bytes: int | None
    working_set_bytes: int | None
    request_bytes: int | None
    request_most_bytes: int | None
    request_from: str | None
    over_request_bytes: int | None
    limit_bytes: int | None


def rank(group: Group, kind: str, where: Place | None, request: Request | None, *, target: bool) -> Rank:
    """A row."""
    working = working_set(group)
    return Rank(
        name=group.name,
        kind=kind,
        pod=where.pod if where else None,
        qos=where.qos if where else None,
        target=target,
        usage_bytes=group.usage_bytes,
        working_set_bytes=working,
        request_bytes=request.least_bytes if request else None,
        request_most_bytes=request.most_bytes if request else None,
        request_from=request.source if request else None,
        over_request_bytes=None if working is None or request is None else working - request.least_bytes,
        limit_bytes=group.limit_bytes,
    )


def worst_first(rows: Iterable[Rank]) -> tuple[Rank, ...]:
    """By working set beyond the request; those whose request is not known after them, by working set."""

    def key(row: Rank) -> tuple[bool, int]:
        over = row.over_request_bytes
        return over is not None, (row.working_set_bytes or 0) if over is None else over

    return tuple(sorted(rows, key=key, reverse=True))


def ranked(snapshot: Snapshot, own_pod: Group | None, container: Rank | None) -> tuple[tuple[Rank, ...], tuple[Rank, ...]]:
    """Rank the pods that can be seen, and the containers of the target's pod.

    Args:
        snapshot: Of the target.
        own_pod: The group of the target's pod.
        container: The target, where it is a container.

    Returns:
        The pods, and the containers.
    """
    total = capacity(snapshot)
    inside: dict[str, list[Rank]] = {}
    pods: list[Neighbour] = []
    for neighbour in snapshot.neighbours:
        name = neighbour.group.name.rpartition("/")[2]
        if neighbour.pod == name:
            pods.append(neighbour)
        elif neighbour.pod is not None:
            where = place(neighbour.group.name)
            asked = _sandbox_or(
                neighbour, request_of(neighbour.group, where.qos if where else None, neighbour.oom_score_adj, total)
            )
            inside.setdefault(neighbour.pod, []).append(rank(neighbour.group, "container", where, asked, target=False))
    own = inside.pop(own_pod.name.rpartition("/")[2], []) if own_pod else []
    own += [container] if container else []
    rows = [_pod(pod.group, inside.get(pod.pod or "", []), target=False) for pod in pods]
    rows += [_pod(own_pod, own, target=True)] if own_pod else []
    return worst_first(rows), worst_first(own)


def _sandbox_or(neighbour: Neighbour, asked: Request | None) -> Request | None:
    """A pod's sandbox asks for nothing."""
    return asked or (Request(0, 0, "oom_score_adj") if neighbour.oom_score_adj == SANDBOX_ADJ else None)


def _pod(group: Group, containers: list[Rank], *, target: bool) -> Rank:
    """A pod asked for what its containers asked for, where all of them tell."""
    where = place(group.name)
    asked = request_of(group, where.qos if where else None, None, None)
    if asked is None and containers and all(one.request_bytes is not None for one in containers):
        sources = {one.request_from for one in containers if one.request_bytes} or {containers[0].request_from}
        least, most = (sum(getattr(one, name) for one in containers) for name in ("request_bytes", "request_most_bytes"))
        asked = Request(least, most, "oom_score_adj" if "oom_score_adj" in sources else str(sources.pop()))
    return rank(group, "pod", where, asked, target=target)
