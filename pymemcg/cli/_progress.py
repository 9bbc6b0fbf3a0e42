# SPDX-License-Identifier: Apache-2.0
"""A bar on stderr for what takes long, where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pymemcg.cli._text import has_rich


@contextmanager
def progress(doing: str, total: float | None, plain: str) -> Iterator[Callable[[float, str], None]]:
    """A function that is told how much is done, and what to say beside the bar; it does nothing where stderr is no terminal.

    Args:
        doing: What is being done.
        total: How much there is to be done; None = it has no end.
        plain: A line to print where there is no rich, with `{done}` and `{says}` in it.
    """
    if not sys.stderr.isatty():
        yield lambda _done, _says: None
    elif has_rich():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(doing), BarColumn(), TextColumn("{task.fields[says]}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total, says="")
            yield lambda done, says: bar.update(task, completed=done, says=says)
    else:
        try:
            yield lambda done, says: print(f"\r{plain.format(done=done, says=says)}", end="", file=sys.stderr, flush=True)
        finally:
            print(file=sys.stderr)
