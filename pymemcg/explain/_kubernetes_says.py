# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes makes of a group, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pymemcg._words import number, share, size
from pymemcg.explain._background import background_says
from pymemcg.explain._pods import (
    BEST_EFFORT,
    BEST_EFFORT_ADJ,
    BURSTABLE,
    GUARANTEED,
    GUARANTEED_ADJ,
    SANDBOX_ADJ,
    implied_request,
    place,
)

if TYPE_CHECKING:
    from pymemcg.explain._kubernetes import KubernetesSection
    from pymemcg.explain._pods import Rank
    from pymemcg.explain._snapshot import Snapshot

_EXPECTED: Final[dict[str | None, int]] = {GUARANTEED: GUARANTEED_ADJ, BEST_EFFORT: BEST_EFFORT_ADJ}
_MEANS: Final = {
    GUARANTEED: "it asked for all that it may use (request = limit), and is the last to be evicted or killed",
    BURSTABLE: "it asked for some memory or CPU, may use more, and is at risk by how much more",
    BEST_EFFORT: "it asked for nothing, and is the first to go when the node is short",
}
_MUCH_BYTES: Final = 4 << 20  # less are pages that CPUs charge in advance, and reads a moment apart
_FROM: Final = {
    "memory.min": "memory.min says so, which the kernel does not reclaim from outside",
    "memory.low": "memory.low says so, which the kernel spares as long as others have something to reclaim",
    "limit": "the limit, which in this class is the request",
}


def sentences(snapshot: Snapshot, told: KubernetesSection) -> Iterator[str]:
    """All of them."""
    yield _what(told)
    yield from _doubt(told)
    yield from _request(told)
    yield from _throttling(told)
    yield from _pod(told)
    yield from _eviction(told)
    yield from _killed(told)
    yield from _worst(told.pods, "pods")
    yield from _worst(told.containers, "containers of this pod")
    if told.background is not None:
        yield background_says(told.background, snapshot.group)


# ---- What it is ----------------------------------------------------------------------------------------------------


def _what(told: KubernetesSection) -> str:
    if told.kind == "pods":
        tier = f"the {told.qos} ones of " if told.qos else ""
        return f"This group holds {tier}the node's pods, {number(len(told.pods))} of which can be seen."
    of = f" of pod {told.pod[:8]}" if told.pod else ""
    name = {"sandbox": "the sandbox (`pause`)", "pod": f"pod {(told.pod or '')[:8]}"}.get(told.kind)
    if name is None:
        name = f"container {told.container[:12]}" if told.container else "a container"
    this = f"This is {name}{'' if told.kind == 'pod' else of}"
    if told.kind == "sandbox" or told.qos is None:
        return f"{this}, which holds a pod's namespaces and asks for no memory." if told.kind == "sandbox" else f"{this}."
    adj = f" (oom_score_adj {told.oom_score_adj})" if told.oom_score_adj == _EXPECTED.get(told.qos) is not None else ""
    return f"{this}, of class {told.qos}{adj}: {_MEANS[told.qos]}."


def _doubt(told: KubernetesSection) -> Iterator[str]:
    """How sure that is."""
    adj = told.oom_score_adj
    if told.by == "oom_score_adj" and adj is not None:
        yield (
            f"Only oom_score_adj {adj} says that: the path in the cgroup hierarchy is hidden here, and anyone may set that "
            "number (`docker run --oom-score-adj`), so it is a guess unless this is known to be Kubernetes"
            f"{', where pods critical for the node have it, too' if adj == GUARANTEED_ADJ else ''}."
        )
    if told.kind != "container" or adj is None:
        return
    if told.qos in (BURSTABLE, BEST_EFFORT) and adj == GUARANTEED_ADJ:
        yield f"oom_score_adj {adj} in class {told.qos} is what the kubelet gives to pods that are critical for the node."
    elif told.qos == GUARANTEED and adj == SANDBOX_ADJ:
        yield f"oom_score_adj {adj} is a Guaranteed container's before Kubernetes 1.22, which made it {GUARANTEED_ADJ}."
    elif (told.qos == BURSTABLE and implied_request(adj, 1) is None) or (told.qos in _EXPECTED and _EXPECTED[told.qos] != adj):
        yield f"oom_score_adj {adj} is not what the kubelet sets in class {told.qos}: somebody changed it."


# ---- What it asked for ---------------------------------------------------------------------------------------------


def _request(told: KubernetesSection) -> Iterator[str]:
    least, most, source = told.request_bytes, told.request_most_bytes, told.request_from
    if least is None or most is None or source is None or not most:
        if told.kind in ("container", "pod") and told.qos == BURSTABLE and least is None:
            adj = _shown(told.oom_score_adj)
            yield f"What it asked for cannot be told: neither oom_score_adj{adj} nor memory.min or memory.low says it."
        return
    if source == "oom_score_adj":
        between = f"at most {size(most)}" if not least else f"{size(least)} to {size(most)}"
        what = (
            "Its containers' oom_score_adj imply"
            if told.kind == "pod"
            else f"oom_score_adj{_shown(told.oom_score_adj)} implies"
        )
        yield f"{what} that it asked for {between}: the kubelet makes it of the request, in thousandths of the node's memory."
    else:
        yield f"It asked for {size(least)}: {_FROM[source]}."
    yield _beyond(told, most)


def _shown(adj: int | None) -> str:
    return "" if adj is None else f" {adj}"


def _beyond(told: KubernetesSection, most: int) -> str:
    over, least = told.over_request_bytes, told.request_bytes
    if over is None or least is None:
        return "How much it uses beyond that cannot be seen."
    surely = over - (most - least)
    if surely > 0:
        about = f"at least {size(surely)}" if most > least else size(over)
        return f"Its working set (usage less file cache that was not used lately) is {about} more than that."
    if over <= 0:
        return f"Its working set (usage less file cache that was not used lately) is {size(-over)} below that."
    return f"Its working set, {size(least + over)}, is about that."


def _throttling(told: KubernetesSection) -> Iterator[str]:
    """Memory QoS."""
    throttling = told.throttling
    if throttling is not None:
        of = "the node's memory for pods" if throttling.of_allocatable else "the limit"
        made = {
            "1.27": f"request + {throttling.factor} × ({of} - request), as Kubernetes makes it from 1.27 on",
            "1.22": f"{throttling.factor} × {of}, as Kubernetes made it before 1.27",
            None: "by no rule of Kubernetes that can be recognised here",
        }[throttling.rule]
        yield (
            f"Memory QoS: from {size(throttling.high_bytes)} on (memory.high) its threads are put to sleep so that it grows "
            f"more slowly; that is {made}."
        )


def _pod(told: KubernetesSection) -> Iterator[str]:
    if told.kind == "container" and told.pod_usage_bytes is not None:
        others = len(told.containers) - 1
        beside = f", with {number(others)} other group{'s' if others != 1 else ''} in it" if others > 0 else ""
        if told.pod_limit_bytes is None:
            yield f"The pod has no limit of its own; it uses {size(told.pod_usage_bytes)}{beside}."
        else:
            own = "" if told.limit_bytes is None else f" (the container's: {size(told.limit_bytes)})"
            used = size(told.pod_usage_bytes)
            yield f"The pod's limit above it is {size(told.pod_limit_bytes)}{own}: {used} of that are used{beside}."
    if (told.outside_bytes or 0) >= _MUCH_BYTES:
        yield (
            f"{size(told.outside_bytes)} of the pod's memory is in none of its containers: those that are gone leave files in "
            "memory (emptyDir with medium Memory) behind, for one."
        )
    if told.pods_usage_bytes is not None and told.pods_limit_bytes is not None:
        ratio = share(told.pods_usage_bytes / told.pods_limit_bytes)
        yield (
            f"All pods together use {size(told.pods_usage_bytes)} of the {size(told.pods_limit_bytes)} ({ratio}) that the node "
            "has for them: where they reach that, the kernel kills in any pod."
        )


# ---- How it ends ---------------------------------------------------------------------------------------------------


def _eviction(told: KubernetesSection) -> Iterator[str]:
    least, most = told.available_least_bytes, told.available_most_bytes
    if least is None or most is None:
        return
    now = size(least) if size(least) == size(most) else f"{size(least)} to {size(most)}"
    below = size(told.evict_below_bytes)
    near = "it evicts now" if most < told.evict_below_bytes else "it is about to evict" if _close(told) else ""
    pod = next((row.over_request_bytes for row in told.pods if row.target), None)
    over, turn = told.over_request_bytes if pod is None else pod, ""
    if told.kind in ("container", "pod") and over is not None:
        turn = (
            " This pod is beyond its request, so among the first, by priority and by how much."
            if over > 0
            else " This pod is within its request, so not before all that are beyond theirs."
        )
    yield (
        f"The kubelet sees about {now} of the node's memory as available; by default it evicts pods when less than {below} are"
        f"{f': {near}' if near else ''}.{turn}"
    )


def _close(told: KubernetesSection) -> bool:
    least = told.available_least_bytes
    return least is not None and least < 2 * told.evict_below_bytes


def _killed(told: KubernetesSection) -> Iterator[str]:
    if told.kind not in ("container", "pod"):
        return
    if told.limit_bytes is None:
        yield (
            "It has no limit, so its end is eviction (the pod fails with reason Evicted, is not restarted in place, and the "
            "node says MemoryPressure), or a kill by the kernel for the whole node (reason OOMKilled)."
        )
    else:
        yield (
            f"At its limit of {size(told.limit_bytes)} the kernel kills: reason OOMKilled, exit code 137, and the container is "
            "restarted in the same pod, unless restartPolicy says Never. Evicted is the kubelet's doing, for want of "
            "memory on the node: the whole pod fails, "
            "the node says MemoryPressure, and exit code 137 then comes without OOMKilled."
        )


# ---- Who is the trouble-maker --------------------------------------------------------------------------------------


def _worst(rows: tuple[Rank, ...], whose: str) -> Iterator[str]:
    if len(rows) < 2:
        return
    first, count = rows[0], number(len(rows))
    this = "" if not first.target else " (the one explained here)" if first.kind == "container" else " (this one)"
    label = f"{_label(first)}{this}"
    if first.over_request_bytes is None:
        yield f"Of {count} {whose}, none tells what it asked for; the largest is {label}, {_uses(first)}."
    elif first.over_request_bytes <= 0:
        yield f"Of {count} {whose}, none is known to be beyond its request; the nearest is {label}: {_asked(first)}."
    else:
        yield f"Of {count} {whose}, {label} is furthest beyond its request: {_asked(first)}."
    unknown = [row for row in rows if row.over_request_bytes is None]
    if unknown and first.over_request_bytes is not None:
        largest = unknown[0]
        yield f"{number(len(unknown))} of them do not tell their request; the largest is {_label(largest)}, {_uses(largest)}."


def _label(row: Rank) -> str:
    return f"pod {row.pod[:8]}" if row.kind == "pod" and row.pod else _id(row.name)


def _id(name: str) -> str:
    """A container's id as its tools print it, or the last part of a group's name."""
    where = place(name)
    return where.container[:12] if where and where.container else name.rpartition("/")[2]


def _uses(row: Rank) -> str:
    return f"whose working set is {size(row.working_set_bytes)}"


def _asked(row: Rank) -> str:
    least, most = row.request_bytes, row.request_most_bytes
    asked = size(least) if least == most else f"{size(least)} to {size(most)}"
    return f"its working set is {size(row.working_set_bytes)}, its request {asked}"
