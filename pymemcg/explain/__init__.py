# SPDX-License-Identifier: Apache-2.0
"""Why a group's memory is as it is: a snapshot of files → tables and a verdict, pure after the snapshot.

Without numpy and without the extension, so that it runs in a container that is full.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pymemcg.explain._edge import Edge, edge
from pymemcg.explain._kubernetes import KubernetesSection, kubernetes
from pymemcg.explain._makeup import Makeup, makeup
from pymemcg.explain._node import Machine, machine
from pymemcg.explain._outcome import Outcome, outcome
from pymemcg.explain._snapshot import Meanwhile, Snapshot
from pymemcg.explain._take import notes, take
from pymemcg.explain._tools import Tools, tools
from pymemcg.explain._tree import Tree, opened
from pymemcg.explain._verdict import VERDICTS, Verdict, judge

__all__ = ["VERDICTS", "Explanation", "Meanwhile", "Snapshot", "Tree", "explain", "notes", "opened", "take"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A snapshot explained.

    Attributes:
        snapshot: What it rests on.
        verdict: What to think of it, and what to do.
        tools: Who says what.
        makeup: What it is made of.
        edge: How far it is to the edge.
        outcome: What happens there.
        machine: The node.
        kubernetes: What Kubernetes makes of it; None where nothing points there.
    """

    snapshot: Snapshot
    verdict: Verdict
    tools: Tools
    makeup: Makeup
    edge: Edge
    outcome: Outcome
    machine: Machine
    kubernetes: KubernetesSection | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, as for JSON."""
        return asdict(self)


def explain(snapshot: Snapshot) -> Explanation:
    """Explain a snapshot. Pure: safe to call from any thread."""
    made, ahead = makeup(snapshot), edge(snapshot)
    then = outcome(snapshot, ahead)
    verdict = judge(snapshot, made, ahead, then)
    return Explanation(snapshot, verdict, tools(snapshot), made, ahead, then, machine(snapshot), kubernetes(snapshot))
