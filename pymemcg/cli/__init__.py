# SPDX-License-Identifier: Apache-2.0
"""The commands: `pymemcg COMMAND …`, also as `python -m pymemcg COMMAND …`.

A command is a module of this package that is a `Command`, and its name in `COMMANDS`. Only the module of the command that was
asked for is imported, and it imports numpy and rich where it first needs them, if at all: `doctor` and `watch --once` must run
in a container that is full.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from pymemcg._version import __version__
from pymemcg.cli._text import terminal_width
from pymemcg.errors import MemcgError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = (
    "doctor",
    "watch",
    "stalls",
    "run",
    "record",
    "report",
    "postmortem",
    "oom",
    "explain",
    "export",
    "fleet",
    "demo",
    "bench",
)


class Command(Protocol):
    """What a command's module has.

    Attributes:
        HELP: What it does, in one line; the module's docstring tells more.
    """

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it.

        Returns:
            The exit status.

        Raises:
            MemcgError: Goes to stderr, and its `exit_code` is the exit status.
            KeyboardInterrupt: Ctrl-C, or `Terminated`; what must be cleaned up is cleaned up on the way.
        """


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command just as Ctrl-C does."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=terminal_width() - 2)  # or it imports shutil at every argument that is added


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        with contextlib.suppress(ImportError):
            from rich_argparse import RawDescriptionRichHelpFormatter

            class _RichFormatter(RawDescriptionRichHelpFormatter):
                help_markup = text_markup = False  # pymemcg[cli] is no markup

            self.formatter_class = _RichFormatter
        return super().format_help()


def make_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser with some or all commands."""
    parser = _Parser(
        prog="pymemcg",
        description="Samples a memory cgroup 1,000 times a second and shows when its service was short of memory.",
        epilog="The first thing to run somewhere new is `pymemcg doctor`, the first to see something `pymemcg demo`.",
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"pymemcg {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", prog=parser.prog)
    for name in commands:
        command = cast("Command", import_module(f"{__name__}.{name}"))
        sub = subparsers.add_parser(name, help=command.HELP, description=command.__doc__, formatter_class=_Formatter)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its name and its arguments; None = the program's.

    Returns:
        The exit status: 0, the command's own, that of a `MemcgError`, or as shells have it 128 + the signal for Ctrl-C (130),
        SIGTERM (143) and a reader that went away (141).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        parser = make_parser(words[:1] if words and words[0] in COMMANDS else COMMANDS)
        args = parser.parse_args(words)
        if args.command is None:
            parser.print_help()
            return 2
        for stream in _streams():
            stream.reconfigure(errors="replace")  # a bar that the terminal lacks is no reason to fail
        with _sigterm_as_ctrl_c():
            status: int = args.run(args)
            for stream in _streams():
                stream.flush()
    except MemcgError as error:
        print(f"pymemcg: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        return 128 + signal.SIGPIPE
    return status


def _streams() -> list[io.TextIOWrapper]:
    """Stdout and stderr; they are None where a shell closed them, as with `>&-`."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Terminated

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_IGN:  # who started us wants it so, and for what we start, too
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
