# SPDX-License-Identifier: Apache-2.0
"""Groups that share a limit, or the machine, with the target: siblings, and on a Kubernetes node all pods."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from pymemcg.cgroup import Level, Target
from pymemcg.explain._snapshot import Group, Neighbour

if TYPE_CHECKING:
    from pymemcg.explain._tree import Tree

POD: Final = re.compile(r"(?:.*-)?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?")
"""A pod's group: `pod<UID>`, or of systemd `kubepods-burstable-pod<UID>.slice`; a static pod's UID is a hash."""

_PODS_TOP: Final = re.compile(r"(?:kubelet-)?kubepods(?:\.slice)?")
_MOST: Final = 1000  # each costs some eight files; a node has 110 pods by default


def neighbours(tree: Tree, target: Target, read: Callable[[Level], Group]) -> Iterator[Neighbour]:
    """Read the groups beside the target and beside each level above it; below `kubepods`, all pods and their containers.

    Args:
        tree: Where from.
        target: What they are beside.
        read: Reads a group.
    """
    top = target.levels[-1].directory.rstrip("/")
    seen = {level.directory for level in target.levels}
    left = _MOST
    # The target's own groups are no neighbours, but that of all pods, or of a class, is there for its pods.
    tops = target.levels if _holds_pods(target) else target.levels[1:]
    for above in reversed(tops):
        for directory, pod in _below(tree, above.directory):
            if directory in seen:
                continue
            if not left:
                tree.absent[above.directory] = f"it has more groups than the {_MOST:,} that are read"
                return
            seen.add(directory)
            left -= 1
            group = read(Level(directory[len(top) :], directory, {"usage": ""}))
            if group.usage_bytes is not None:
                yield Neighbour(group, pod, _first_adj(tree, directory))


def _holds_pods(target: Target) -> bool:
    names = [level.directory.rpartition("/")[2] for level in target.levels]
    return any(map(_PODS_TOP.fullmatch, names)) and not any(map(POD.fullmatch, names))


def _below(tree: Tree, directory: str) -> Iterator[tuple[str, str | None]]:
    """The groups right below one; of pods, wherever they are below `kubepods`, also those of their containers."""
    inside = any(map(_PODS_TOP.fullmatch, directory.split("/")))
    for name in tree.folders(directory):
        at = f"{directory}/{name}"
        pod = POD.fullmatch(name)
        yield at, name if pod else None
        if pod:
            yield from ((f"{at}/{inner}", name) for inner in tree.folders(at))
        elif _PODS_TOP.fullmatch(name) or (inside and not any(map(POD.fullmatch, at.split("/")))):  # a class of pods
            yield from _below(tree, at)


def _first_adj(tree: Tree, directory: str) -> int | None:
    """Of the first process in a group, or in one below it, that can be seen."""
    for at in (directory, *(f"{directory}/{name}" for name in tree.folders(directory))):
        for pid in (tree.text(f"{at}/cgroup.procs") or "").split():
            adj = tree.number(f"/proc/{pid}/oom_score_adj")
            if adj is not None:
                return adj
    return None
