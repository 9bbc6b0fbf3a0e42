# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes makes of a group: its class and request, Memory QoS, the pod, eviction, and who is beyond the request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pymemcg.explain._background import Background, background
from pymemcg.explain._kubernetes_says import sentences
from pymemcg.explain._neighbours import POD
from pymemcg.explain._pods import (
    BEST_EFFORT,
    BEST_EFFORT_ADJ,
    BURSTABLE,
    GUARANTEED,
    GUARANTEED_ADJ,
    SANDBOX_ADJ,
    Place,
    Rank,
    Request,
    capacity,
    implied_request,
    place,
    rank,
    ranked,
    request_of,
)
from pymemcg.explain._tools import working_set

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymemcg.explain._snapshot import Group, Snapshot

_EVICT_BELOW_BYTES: Final = 100 << 20
"""memory.available<100Mi: the default of the kubelet's evictionHard (pkg/kubelet/apis/config/v1beta1/defaults_linux.go)."""


@dataclass(frozen=True, slots=True)
class Throttling:
    """Memory QoS: where the kubelet has threads of a container put to sleep.

    Attributes:
        high_bytes: memory.high.
        factor: The kubelet's memoryThrottlingFactor that leads there; None where what it is a share of is not known.
        rule: "1.27", ``request + factor × (limit - request)``, or "1.22", ``factor × limit``: by its version of Kubernetes.
        of_allocatable: Whether, for want of a limit, the node's allocatable memory stands in for it.
    """

    high_bytes: int
    factor: float | None
    rule: str | None
    of_allocatable: bool


@dataclass(frozen=True, slots=True)
class KubernetesSection:
    """What Kubernetes makes of it. None = not known, and of limits also none.

    Attributes:
        by: What tells that it is Kubernetes: "path", or "oom_score_adj" alone, which others may set, too.
        kind: "container", "sandbox" (a pod's `pause`), "pod", or "pods": a group above the pods.
        qos: The pod's class: "Guaranteed", "Burstable" or "BestEffort".
        pod: The pod's UID.
        container: The container's id.
        oom_score_adj: Of the container's first process.
        request_bytes: The least that it asked for.
        request_most_bytes: The most that it may have asked for; the same where it is known.
        request_from: As in `Request.source`.
        over_request_bytes: Working set less request; negative below it.
        limit_bytes: The container's, or the pod's where that is explained.
        pod_usage_bytes: Of the pod's group.
        pod_limit_bytes: Of the pod's group: the sum of its containers' where all have one.
        outside_bytes: Of the pod's usage what is in none of its containers' groups.
        pods_usage_bytes: Of `kubepods`.
        pods_limit_bytes: Of `kubepods`: what the node has for pods.
        min_bytes: memory.min, where it is not 0.
        low_bytes: memory.low, likewise.
        throttling: memory.high, where there is one.
        evict_below_bytes: The kubelet's default threshold; how it is configured cannot be seen from cgroups.
        available_least_bytes: What the kubelet sees as memory.available, approximately; see `available`.
        available_most_bytes: Likewise: it depends on the kubelet's version.
        background: Background reclaim of Alibaba's kernel, where the kernel has it.
        pods: Those that can be seen, the furthest beyond its request first.
        containers: Those of the same pod, likewise.
        says: In sentences.
    """

    by: str
    kind: str
    qos: str | None
    pod: str | None
    container: str | None
    oom_score_adj: int | None
    request_bytes: int | None
    request_most_bytes: int | None
    request_from: str | None
    over_request_bytes: int | None
    limit_bytes: int | None
    pod_usage_bytes: int | None
    pod_limit_bytes: int | None
    outside_bytes: int | None
    pods_usage_bytes: int | None
    pods_limit_bytes: int | None
    min_bytes: int | None
    low_bytes: int | None
    throttling: Throttling | None
    evict_below_bytes: int
    available_least_bytes: int | None
    available_most_bytes: int | None
    background: Background | None
    pods: tuple[Rank, ...]
    containers: tuple[Rank, ...]
    says: tuple[str, ...]


def kubernetes(snapshot: Snapshot) -> KubernetesSection | None:
    """Look at it as Kubernetes does; None where nothing points there."""
    where, adj = place(snapshot.cgroup_path), main_adj(snapshot)
    if where is None and (snapshot.cgroup_path != "/" or adj is None or _class_of(adj) is None):
        return None
    pod, pods = _pod_group(snapshot), _pods_group(snapshot)
    kind = _kind(where, adj, snapshot)
    adj = adj if kind in ("container", "sandbox") else None
    qos = where.qos if where else None if kind == "sandbox" else _class_of(adj)
    group = _container_group(snapshot, pod) if kind in ("container", "sandbox") else snapshot.group
    asked = None if kind == "pods" else request_of(group, qos, adj, capacity(snapshot))
    if kind == "sandbox":
        asked = Request(0, 0, "oom_score_adj")
    row = rank(group, "container", where, asked, target=True) if kind in ("container", "sandbox") else None
    all_pods, inside = ranked(snapshot, pod, row if pod else None)
    if kind == "pod":  # which asked for what its containers did
        own = next((one for one in all_pods if one.target), None)
        if own and own.request_bytes is not None and own.request_most_bytes is not None:
            asked = Request(own.request_bytes, own.request_most_bytes, own.request_from or "path")
    available = available_bytes(snapshot.node.meminfo) if capacity(snapshot) is not None else ()
    working = working_set(group)
    told = KubernetesSection(
        by="path" if where else "oom_score_adj",
        kind=kind,
        qos=qos,
        pod=where.pod if where else None,
        container=where.container if where else None,
        oom_score_adj=adj,
        request_bytes=asked.least_bytes if asked else None,
        request_most_bytes=asked.most_bytes if asked else None,
        request_from=asked.source if asked else None,
        over_request_bytes=None if asked is None or working is None else working - asked.least_bytes,
        limit_bytes=group.limit_bytes,
        pod_usage_bytes=pod.usage_bytes if pod else None,
        pod_limit_bytes=pod.limit_bytes if pod else None,
        outside_bytes=_outside(pod, inside),
        pods_usage_bytes=pods.usage_bytes if pods else None,
        pods_limit_bytes=pods.limit_bytes if pods else None,
        min_bytes=group.limits.get("min") or None,
        low_bytes=group.limits.get("low") or None,
        throttling=_throttling(group, asked, pods.limit_bytes if pods else None),
        evict_below_bytes=_EVICT_BELOW_BYTES,
        available_least_bytes=min(available) if available else None,
        available_most_bytes=max(available) if available else None,
        background=background(group),
        pods=all_pods,
        containers=inside,
        says=(),
    )
    return replace(told, says=tuple(sentences(snapshot, told)))


# ---- What it is ----------------------------------------------------------------------------------------------------


def main_adj(snapshot: Snapshot) -> int | None:
    """Of the container's first process: its children may have raised theirs, which anyone may do.

    Where no process is the first of its pid namespace, as where a pod shares one, the oldest by pid; and another than the
    sandbox, if there is another.
    """
    known = [one for one in snapshot.processes if one.oom_score_adj is not None]
    others = [one for one in known if one.oom_score_adj != SANDBOX_ADJ] or known
    chosen = min(others, key=lambda one: (not one.first, one.pid), default=None)
    return chosen.oom_score_adj if chosen else None


def _class_of(adj: int | None) -> str | None:
    """The class that a number alone suggests; None for one that the kubelet gives to no container."""
    if adj in (GUARANTEED_ADJ, SANDBOX_ADJ):
        return GUARANTEED
    if adj == BEST_EFFORT_ADJ:
        return BEST_EFFORT
    return BURSTABLE if adj is not None and implied_request(adj, 1) else None


def _kind(where: Place | None, adj: int | None, snapshot: Snapshot) -> str:
    if where is not None and not where.below_pod:
        return "pods" if where.pod is None else "pod"
    paused = adj == SANDBOX_ADJ and all(one.name == "pause" for one in snapshot.processes)
    return "sandbox" if paused else "container"


def _pod_group(snapshot: Snapshot) -> Group | None:
    return next((group for group in snapshot.levels if POD.fullmatch(_last(group))), None)


def _pods_group(snapshot: Snapshot) -> Group | None:
    """`kubepods`: what is above the pods and their tiers."""
    return next((group for group in snapshot.levels if _last(group).removesuffix(".slice").endswith("kubepods")), None)


def _container_group(snapshot: Snapshot, pod: Group | None) -> Group:
    """The group right below the pod's: the target, or one that the target is in."""
    return snapshot.levels[max(0, snapshot.levels.index(pod) - 1)] if pod else snapshot.group


def _outside(pod: Group | None, containers: tuple[Rank, ...]) -> int | None:
    """What containers that are gone left behind, such as files in memory: their charges are passed on to the pod."""
    if pod is None or pod.usage_bytes is None or not containers:
        return None
    return max(0, pod.usage_bytes - sum(one.usage_bytes or 0 for one in containers))


def _last(group: Group) -> str:
    return group.name.rpartition("/")[2]


# ---- Memory QoS ----------------------------------------------------------------------------------------------------


_SAME: Final = 0.001
_DEFAULT_FACTOR: Final = 0.9


def _throttling(group: Group, asked: Request | None, allocatable: int | None) -> Throttling | None:
    """Find the factor that memory.high was made with (KEP-2570), of the two rules that there have been.

    Since 1.27 ``request + factor × (limit - request)``, rounded down to pages, 0.9 by default (no default from 1.37 on);
    before, ``factor × limit``, 0.8. A container without limit has the node's allocatable memory in its place.
    """
    high = group.limits.get("high")
    if high is None:
        return None
    limit = group.limit_bytes if group.limit_bytes is not None else allocatable
    instead = group.limit_bytes is None and allocatable is not None
    if not limit:
        return Throttling(high, None, None, instead)
    if abs(high / limit - 0.8) < _SAME and not (asked and _since_1_27(high, limit, asked) == _DEFAULT_FACTOR):
        return Throttling(high, 0.8, "1.22", instead)
    factor = _since_1_27(high, limit, asked) if asked else None
    return Throttling(high, factor, "1.27" if factor is not None else None, instead)


def _since_1_27(high: int, limit: int, asked: Request) -> float | None:
    """The factor to two places; the default where a request between the least and the most makes it so."""
    factors = [(high - count) / (limit - count) for count in (asked.least_bytes, asked.most_bytes) if count < min(high, limit)]
    if not factors or not 0 < max(factors) <= 1:
        return None
    if min(factors) - _SAME <= _DEFAULT_FACTOR <= max(factors) + _SAME:
        return _DEFAULT_FACTOR
    return round(sum(factors) / len(factors), 2)


# ---- Eviction ------------------------------------------------------------------------------------------------------


def available_bytes(info: Mapping[str, int]) -> tuple[int, ...]:
    """What the kubelet takes for memory.available: MemTotal less the working set of the root cgroup.

    Its usage is ``anon + file`` on v1, and on v2 since runc's library has it so (opencontainers/runc#3933, 2023); before,
    ``MemTotal - MemFree``. Working set is usage less inactive file cache (cAdvisor). /proc/meminfo has these figures as
    AnonPages, as Cached + Buffers + SwapCached, and as Inactive(file).

    Returns:
        By either rule, bytes; empty where a figure is missing.
    """
    needed = ("MemTotal", "MemFree", "AnonPages", "Cached", "Buffers", "SwapCached", "Inactive(file)")
    if not all(name in info for name in needed):
        return ()
    counted = sum(info[name] for name in ("AnonPages", "Cached", "Buffers", "SwapCached"))
    usages = (counted, info["MemTotal"] - info["MemFree"])
    return tuple(info["MemTotal"] - max(0, usage - info["Inactive(file)"]) for usage in usages)
