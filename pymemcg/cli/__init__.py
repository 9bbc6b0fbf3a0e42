# SPDX-License-Identifier: Apache-2.0
"""The commands: `pymemcg COMMAND …`, also as `python -m pymemcg COMMAND …`.

A command is a module of this package that is a `Command`, and its name in `COMMANDS`. Only the module of the command that was
asked for is imported, and it imports numpy and rich where it first needs them, if at all: `doctor` and `watch --once` must run
in a container that is full.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, TextIO, cast

from pymemcg._version import __version__
from pymemcg.cli._text import terminal_width
from pymemcg.errors import MemcgError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a full disk, a closed descriptor, ulimit -f and a terminal that is gone give. Other files than stdout are told by name.
_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.EFBIG, errno.EIO}
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
        The exit status: 0, the command's own, that of a `MemcgError`, 1 where stdout takes no more, or as shells have it 128 +
        the signal for Ctrl-C (130), SIGTERM (143) and a reader that went away (141).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    _replace_closed_streams()
    try:
        parser = make_parser(words[:1] if words and words[0] in COMMANDS else COMMANDS)
        args = _parsed(parser, words)
        if args.command is None:
            parser.print_help()
            _flush()
            return 2
        for stream in _streams():
            stream.reconfigure(errors="replace")  # a bar that the terminal lacks is no reason to fail
        with _sigterm_as_ctrl_c():
            status: int = args.run(args)
            _flush()
    except MemcgError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        _silence(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _silence(sys.stdout)
        _complain(f"stdout: cannot be written: {error.strerror}")
        return MemcgError.exit_code
    return status


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(words)
    except SystemExit:  # after --help
        _flush()
        raise


def _replace_closed_streams() -> None:
    """Put something in the place of what a shell closed, as with `>&-`, or the next file that is opened takes that place.

    To read from such a stdin and to write to such a stdout fails as if they were closed; what is for stderr goes nowhere.
    """
    for name, mode, flags in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, flags), mode, closefd=False))  # noqa: SIM115 - until the end


def _silence(stream: TextIO) -> None:
    """Forget what it could not write, or the interpreter complains when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text: str) -> None:
    try:
        print(f"pymemcg: {text}", file=sys.stderr, flush=True)
    except OSError:  # nobody can be told, but the exit status tells it, too
        _silence(sys.stderr)


def _streams() -> list[io.TextIOWrapper]:
    """Stdout and stderr, where they are what they are in a program."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


def _flush() -> None:
    for stream in _streams():
        stream.flush()


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
