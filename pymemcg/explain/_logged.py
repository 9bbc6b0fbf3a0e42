# SPDX-License-Identifier: Apache-2.0
"""What the kernel's log says of OOM kills in a group."""

from __future__ import annotations

from collections.abc import Iterable

from pymemcg.errors import NotSupported
from pymemcg.explain._snapshot import LoggedKill

_KEPT = 10


def logged_kills(paths: Iterable[str]) -> tuple[tuple[LoggedKill, ...], str | None]:
    """The last kills of processes in a group, or below it, by this machine's own log.

    Args:
        paths: The group's path, as the host has it: the log knows no other.

    Returns:
        The kills, the newest last; and why the log could not be read.
    """
    from pymemcg.oom import kills
    from pymemcg.oom._logs import kernel_lines

    tops = [path.rstrip("/") + "/" for path in paths]
    found = []
    try:
        for kill in kills(kernel_lines()):
            if any(f"{kill.task_memcg or ''}/".startswith(top) for top in tops):
                found.append(LoggedKill(kill.cause, kill.pid, kill.name, kill.oom_memcg, kill.task_memcg, kill.seconds))
                del found[:-_KEPT]
    except NotSupported as error:
        return (), str(error)
    return tuple(found), None
