# SPDX-License-Identifier: Apache-2.0
"""What service a recording is of: by its group's path, or where that says nothing by its host, without the replica's name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_UUID: Final = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
_ID: Final = re.compile(rf"(?<![0-9a-z])(?:[0-9a-f]{{64}}|{_UUID}|r?[0-9a-f]{{32}}(?:-\d+)?)(?![0-9a-z])|(?<=pod){_UUID}")
"""Of a container (64 hexadecimal digits; in Amazon's ECS 32 and a number), a pod (a UUID, in systemd's slices with _), or a run
of systemd's (r and 32 digits)."""
_NUMBER: Final = re.compile(r"(?<=[-@])\d+(?=[-.]|$)")
"""session-12.scope, user@1000.service, worker@3.service."""
_SCAFFOLD: Final = re.compile(
    r"(?:\*|docker|podman|ecs|lxc|init|container|libpod_parent|(?:init|session-\*|run-\*)\.scope|(?:run-\*|user@\*)\.service"
    r"|(?:machine|system|user|user-\*|kubelet)\.slice|kubepods|besteffort|burstable|guaranteed|pod\*"
    r"|(?:kubelet-)?kubepods(?:-besteffort|-burstable|-guaranteed)?(?:-pod\*)?\.slice"
    r"|(?:docker|libpod|cri-containerd|crio|containerd|nerdctl)-(?:conmon-)?\*(?:\.scope)?)"
)
"""Parts of a path that a runtime makes, and that say nothing of what runs there."""
_TEMPLATE: Final = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}$")
"""How Kubernetes ends the name of a Deployment's pod: the template's hash and five more characters, of an alphabet without
vowels (SafeEncodeString() in apimachinery's util/rand)."""
_REPLICA: Final = re.compile(r"[-_.]?\d+$")
_HOST_ID: Final = re.compile(r"[0-9a-f]{12}|[0-9a-f]{64}")
"""Docker's name for the host in a container that was given none: its id."""


def service_of(info: Mapping[str, Any]) -> str:
    """The service's name, which is the same for all its replicas on all hosts.

    Args:
        info: What a recording says of itself.

    Returns:
        The group's path, each id in it a `*`; where nothing is left of that but what container runtimes and systemd make, the
        host's name without the number of the replica. docs/fleet.md has the rules.
    """
    path = group_of(info)
    parts = [_NUMBER.sub("*", _ID.sub("*", part)) for part in path.strip("/").split("/") if part]
    if any(not _SCAFFOLD.fullmatch(part) for part in parts):
        return "/" + "/".join(parts)
    host = str(info.get("host") or "")
    if not host or _HOST_ID.fullmatch(host):
        return "/" + "/".join(parts)
    name = host.split(".", maxsplit=1)[0]
    return _TEMPLATE.sub("", name) if _TEMPLATE.search(name) else _REPLICA.sub("", name) or name


def group_of(info: Mapping[str, Any]) -> str:
    """The group's path below the visible root of its hierarchy, or its directory where that is not said."""
    target: Mapping[str, Any] = info.get("target") or {}
    levels = target.get("levels") or ()
    return str(levels[0]["name"] if levels else target.get("directory") or "/")
