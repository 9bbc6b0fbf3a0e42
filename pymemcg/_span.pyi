# SPDX-License-Identifier: Apache-2.0
# What csrc/span.c offers: a span as far as a request waits for it.
from collections.abc import Callable
from types import TracebackType
from typing import Any

class Span:
    name: str
    ref: str | int | None
    start_ns: int
    end_ns: int
    _tid: int
    _attribution: int
    _ran_start_ns: int
    _ran_end_ns: int
    @property
    def _note(self) -> Callable[[Any], None]: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

class Marker:
    def __init__(self, kind: type[Span], in_loop: Callable[[], bool], note: Callable[[Any], None], /) -> None: ...
    def span(self, name: str, ref: str | int | None = None) -> Any: ...

def forget_thread() -> None: ...
