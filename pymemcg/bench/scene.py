# SPDX-License-Identifier: Apache-2.0
"""Where overhead is measured: a group with workers, far from its limit or at it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymemcg.bench.loads import MIB, make_file
from pymemcg.bench.worker import Worker
from pymemcg.child import ChildGroup

if TYPE_CHECKING:
    from types import TracebackType

_CHURN_BYTES_PER_S = 64 * MIB
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scene is to be.

    Attributes:
        name: For people.
        limit_bytes: The group's.
        workers: How many processes.
        churning: Whether one more process reads files through the page cache, 64 MiB a second, so that the group is at its
            limit and reclaims all the time.
    """

    name: str
    limit_bytes: int
    workers: int = 1
    churning: bool = False


FAR = Setting("far from the limit", 2048 * MIB)
AT_LIMIT = Setting("at the limit, page cache churning", 96 * MIB, churning=True)
EIGHT = Setting("eight workers, far from the limit", 2048 * MIB, workers=8)


class Scene:
    """A setting as it stands: a group of its own, or where `own` is set this process's, with workers in it.

    Attributes:
        group: None where it is this process's own.
        workers: The processes.

    Raises:
        NotSupported: It cannot be made here.
    """

    def __init__(self, setting: Setting, *, own: bool = False) -> None:
        with ExitStack() as stack:
            self.group = None if own else stack.enter_context(ChildGroup("bench", limit_bytes=setting.limit_bytes))
            self.workers = [stack.enter_context(Worker(self.group)) for _ in range(setting.workers)]
            for worker in self.workers:  # side by side: eight interpreters that start one after the other take seconds
                worker.begin("serving.serve", seconds=0.05, sampled=True)
            for worker in self.workers:
                worker.end()  # all that is imported and made once is there
            if setting.churning:
                file = stack.enter_context(make_file(setting.limit_bytes))
                churner = stack.enter_context(Worker(self.group))
                churner.begin("serving.churn", path=file.name, bytes_per_s=_CHURN_BYTES_PER_S)
                self.workers[0].call("holding.wait_for_hits", seconds=_PATIENCE_S + setting.limit_bytes / _CHURN_BYTES_PER_S)
            self._stack = stack.pop_all()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
