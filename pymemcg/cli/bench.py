# SPDX-License-Identifier: Apache-2.0
"""Measure the sampler's promises on this machine, from the installed package.

overhead: what sampling costs, beside the least that could do the same. fidelity: whether it leaves PSI undisturbed; takes root,
and about half an hour. Both need pymemcg[bench].
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Final, Protocol

from pymemcg.errors import NotSupported

if TYPE_CHECKING:
    from typing import Any

HELP: Final = "measure what sampling costs, and whether it leaves PSI undisturbed"


class _Found(Protocol):
    @property
    def kept(self) -> bool: ...

    def describe(self) -> dict[str, Any]: ...

    def to_markdown(self) -> str: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.add_argument("what", choices=("overhead", "fidelity"), metavar="WHAT", help="overhead or fidelity")
    parser.add_argument("--full", action="store_true", help="measure longer, for narrower intervals")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown, to hand on")


def run(args: argparse.Namespace) -> int:
    """Measure; exit status 1 where a promise was found broken."""
    found = _measure(args.what, full=args.full)
    if args.json:
        print(json.dumps(found.describe(), indent=2))
    else:
        print(found.to_markdown() if args.markdown else _text(found), end="" if args.markdown else "\n")
    return 0 if found.kept else 1


def _measure(what: str, *, full: bool) -> _Found:
    try:
        import psutil  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise NotSupported(f"benchmarks need {error.name}", hint="pip install 'pymemcg[bench]'") from error
    if what == "overhead":
        from pymemcg.bench import overhead

        return overhead.run(full, progress=_tell)
    from pymemcg.bench import fidelity

    return fidelity.run(full, progress=_tell)


def _text(found: _Found) -> str:
    """For a terminal, where it has a form of its own for it; Markdown reads well too."""
    to_text = getattr(found, "to_text", found.to_markdown)
    return str(to_text())


def _tell(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)
