# SPDX-License-Identifier: Apache-2.0
"""Run a command, sample its group meanwhile, and tell on stderr at the end when it was held up for memory.

The command has this process's terminal, process group and signals, and its exit status is passed on: 128 + the signal that
killed it, 126 and 127 as in shells. As pid 1 of a container this reaps orphans. The command runs in the present group, or with
--memory-max in one of its own: below the present one; on cgroup v2 beside it, or in a scope that systemd is asked for. Where
nothing can be sampled it runs all the same, and stderr says why there is no report; but what was asked for by an option and
cannot be had is an error (125) before it begins.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from pymemcg.child import ChildGroup
from pymemcg.cli._arguments import add_evidence, bytes_of
from pymemcg.cli._command import Command, NotExecutable, NotFound
from pymemcg.cli._witness import Witness
from pymemcg.errors import MemcgError

if TYPE_CHECKING:
    from collections.abc import Iterable

HELP: Final = "run a command, and show its stalls at the end"

FAILED: Final = 125
"""The exit status where something of ours failed before the command began, as of `timeout`, `env` and `docker run`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.usage = "pymemcg run [--memory-max SIZE] [--evidence EVIDENCE] [-o FILE] -- CMD [ARG …]"
    parser.add_argument(
        "--memory-max",
        type=bytes_of,
        metavar="SIZE",
        help="run it in a group of its own with this limit (512M), removed at the end",
    )
    add_evidence(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="record the samples, too (of a day at most)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments")
    parser.set_defaults(refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Run it."""
    words: list[str] = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        args.refuse("a command is missing: pymemcg run -- CMD [ARG …]")
    witness = Witness(args.evidence, args.output)
    status = None
    with Command(words) as command:
        try:
            with ExitStack() as stack:
                _begin(command, witness, args.memory_max, stack)
                status = command.wait()
                witness.command_ended()
        except (NotFound, NotExecutable):
            raise
        except MemcgError as error:
            _tell([f"pymemcg: {error}"])
            if status is None:
                return FAILED
    try:
        _tell(witness.report(os.path.basename(words[0]), status))
    except KeyboardInterrupt:  # whatever becomes of the report, the status is the command's
        pass
    except Exception as error:  # noqa: BLE001 - likewise
        _tell([f"pymemcg: the report cannot be made: {error!r}"])
    return status if status >= 0 else 128 - status


def _begin(command: Command, witness: Witness, limit_bytes: int | None, stack: ExitStack) -> None:
    group = None
    if limit_bytes is not None:
        group = ChildGroup("run", limit_bytes=limit_bytes)
        stack.callback(group.close)
        group.add(command.pid)
    stack.callback(witness.close)
    try:
        witness.look_at(group)
    except Exception as error:
        if witness.required:
            raise
        why = (
            error if isinstance(error, MemcgError) else repr(error)
        )  # even a fault of ours must not keep a service from running
        _tell([f"pymemcg: there will be no report of stalls: {why}"])
    command.release()
    witness.command_began()


def _tell(lines: Iterable[str]) -> None:
    """Print on stderr; where there is none, nobody reads it any more or the disk is full, so be it."""
    if sys.stderr is None:  # print would take stdout
        return
    try:
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # or the interpreter complains when it flushes
