# SPDX-License-Identifier: Apache-2.0
"""What all tests share."""

from __future__ import annotations

import multiprocessing.process
import os
import sys
from pathlib import Path

import pytest

# pytest's importlib mode puts no folder on the path, so the builders in tests/unit are put there; and the source tree, for
# `bench`, but last: it has a `pymemcg` without an extension, which spawned processes would find before the installed one.
sys.path.insert(0, str(Path(__file__).resolve().parent / "unit"))
sys.path.append(str(Path(__file__).resolve().parents[1]))

pytest.register_assert_rewrite("actor")  # what it asserts of a process says both sides


def pytest_configure() -> None:
    """Leave the source tree: there `python -m pymemcg` of a test's process would find it before the installed package."""
    os.chdir("/")
    multiprocessing.process.ORIGINAL_DIR = "/"  # where spawned processes go back to
