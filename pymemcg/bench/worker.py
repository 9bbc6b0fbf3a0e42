# SPDX-License-Identifier: Apache-2.0
"""A process in a group of the benchmark's own, which does there what it is told: a benchmark belongs where users are."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from pymemcg.errors import MemcgError

if TYPE_CHECKING:
    from types import TracebackType

    from pymemcg.child import ChildGroup

_WAIT_AND_BECOME = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.read(0, 1)
os.execv(sys.executable, [sys.executable, "-m", "pymemcg.bench.worker"])
"""
"""Once it is in the group it begins anew, so that all of its memory is charged there. Ctrl-C is for who started it to heed."""
_PR_SET_PDEATHSIG = 1


class Worker:
    """A process that runs functions of this package in a group.

    Args:
        group: Where it runs; None = where this process is.

    Not thread-safe.
    """

    def __init__(self, group: ChildGroup | None = None) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and text of our own
            [sys.executable, "-c", _WAIT_AND_BECOME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            if group is not None:
                group.add(self._process.pid)
            self._write("\n")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def call(self, function: str, **arguments: Any) -> Any:
        """Run `module.function` of this package, or of another one named in full, there with JSON arguments.

        Returns:
            What it returns, through JSON.

        Raises:
            MemcgError: It failed there; the message is the worker's.
        """
        self.begin(function, **arguments)
        return self.end()

    def begin(self, function: str, **arguments: Any) -> None:
        """Start a call and do not wait for it."""
        self._write(json.dumps([function, arguments]) + "\n")

    def end(self) -> Any:
        """What the call that was begun returns.

        Raises:
            MemcgError: It failed there.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MemcgError(f"a worker of the benchmark died with status {self._process.wait()}")
        error, result = json.loads(line)
        if error is not None:
            raise MemcgError(f"a worker of the benchmark failed: {error}")
        return result

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def main() -> None:
    """Serve calls until there are no more, or nobody to make any: some of them would go on for good."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        name, arguments = json.loads(line)
        module, _, function = name.rpartition(".")
        try:
            where = module if "." in module else f"pymemcg.bench.{module}"
            answer = [None, getattr(importlib.import_module(where), function)(**arguments)]
        except Exception as error:  # noqa: BLE001 - it is told to who asked
            answer = [f"{name}: {type(error).__name__}: {error}", None]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
